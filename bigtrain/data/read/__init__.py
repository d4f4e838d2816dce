"""From an index to a stream of batches (`stream`): the order of samples (`order`), reading and decoding (`reader`, `resize`),
worker processes (`loader`), shards from URLs (`shard_cache`, `prefetch`), variants of an index (`variants`).

Training, features, evaluation, inference and launch/encode.py import it, and so does data/write/ where it reads shards.
"""
