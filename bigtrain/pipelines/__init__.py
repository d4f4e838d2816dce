"""Kept for folders that were exported before `exchange/`: their model_index.json names `pipelines.pipeline`."""
