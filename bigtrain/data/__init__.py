"""Images on disk -> shards -> a stream of batches.

`layouts` knows the sets that can be made into shards (`sources`, `archives`, `tars`, `imagenet`), `picture_reader` reads
them, `convert`, `shards` and `digits` make the shards, `existing` indexes those that others made, `codes` makes shards of
codes from those of images, `verify` reads all of them to see what is broken. `index` describes shards, `views` looks at
them otherwise; `order`, `decode`, `resize`, `reader`, `loader` and `stream` read them; `remote`, `cache` and `prefetch`
bring them here where they lie elsewhere. Floors above import `index`, `views` and `stream`, the doors that make shards the
rest; nothing here knows of families, training or evaluation.
"""
