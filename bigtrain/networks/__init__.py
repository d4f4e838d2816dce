"""Torch modules and nothing else: no losses, no files, no recipes.

Whatever keeps statistics does so through `statistics`: pure forward, explicit commit. Families, training, evaluation
and pipelines may import from here; networks import only each other, options, errors and the facts about the world.
"""
