"""Files on disk -> shards -> a stream of batches.

`sources/` lists and reads folders, archives and published data sets; `write/` makes shards of them, indexes shards that
others made, and verifies them; `digits` makes those of scikit-learn's digits, `points` draws points in a plane. `fields/` has
the kinds of fields that samples are made of; `index` describes the shards of a split; `read/` turns an index into a stream of
batches; `decode` and `npy` turn bytes into arrays; `remote` fetches shards and indexes from URLs, `tars` finds the members of a
tar. `options` are the recipe's section `data`, and `splits` opens the indexes that it names.

Every package above may import this; launch/shard.py and launch/encode.py use `write/`. It imports runs, cluster and randomness,
and knows nothing of families, training or evaluation.
"""
