"""What a sample is made of: a mapping of fields, each of a kind.

`field` has what all kinds share, `registry` lists the kinds; `pictures` (image, map), `clip`, `codes`, `label`, `text` and
`array` (array, attributes) are the kinds, and `derived` makes one field from another. An index (bigtrain.data.index) says
which fields its samples have. To add a kind: a subclass of `Field`, and its line in the registry.
"""
