"""One field of a sample on its way into shards: from the bytes of a source to members, and to the field in the index.

`encoder` has what all kinds share, `registry` lists the kinds; the others are the kinds. data.write imports this; it imports
data.fields, data.decode and data.sources. To add a kind: a subclass of `Encoder`, and its line in the registry.
"""
