"""Pictures before they are in shards: one file per container, and on top the layouts of known sets.

May be imported by data.write and by evaluation; imports nothing of data.write.
"""
