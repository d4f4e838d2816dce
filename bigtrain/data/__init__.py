"""Images on disk -> shards -> a stream of batches.

`sources`, `convert`, `shards` and `digits` make shards, `existing` indexes those that others made, `codes` makes shards
of codes from those of images, `index` describes them, `decode`, `reader` and `stream` read them. Floors above import
`index` and `stream`, the doors that make shards the rest; nothing here knows of families, training or evaluation.
"""
