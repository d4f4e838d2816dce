"""Files of samples before they are in shards.

An `ImageSource` lists and reads one container: `folder`, `tar`, `zip`, `raw_pixels`, `database`, or a file in `tables/`;
`opening` says which of the first three is at a path. On top of them, `samples` has the tables that shards are written from,
`clips` makes one sample of a folder of frames, `layouts/` says which splits and classes a set has, `beside` finds the further
fields of its samples, and `flags` is what launch/shard.py asks for. `collection`, `image_files` and `npz` are what evaluation
reads.

data.write, data.digits, data.points and evaluation may import this; it imports data.decode, data.fields, data.index,
data.tars and data.read.loader.
"""
