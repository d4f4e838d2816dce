"""Image files before they are in shards.

An `ImageSource` lists and reads one container: `folder`, `tar`, `zip`, `raw_pixels` or `database`; `opening` says which of the
first three is at a path. On top of them, `pictures` has the tables of pictures that shards are written from, `layouts/` says
which splits and classes a set has, and `collection`, `image_files` and `npz` are what evaluation reads.

data.write, data.digits and evaluation may import this; it imports data.decode, data.index, data.tars and data.read.loader.
"""
