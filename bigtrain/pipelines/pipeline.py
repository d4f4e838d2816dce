"""Kept for folders that were exported before `exchange/`: their pipeline.py and model_index.json name this module."""

from bigtrain.exchange.pipeline import ExportedModel, FamilyPipeline, PlainFamilyPipeline

__all__ = ["ExportedModel", "FamilyPipeline", "PlainFamilyPipeline"]
