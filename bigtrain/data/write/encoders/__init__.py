"""One field of a sample on its way into shards: from the bytes of a source to members, and to the field in the index.

`encoder` has what all kinds share; the others are the kinds. data.write imports this; it imports data.fields and data.decode.
"""
