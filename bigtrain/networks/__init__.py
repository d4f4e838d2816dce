"""Torch modules and nothing else: no losses, no files, no recipes.

Modules that keep statistics build on `layers/statistics`: forward is pure, and a commit applies them. Families and
training import from here; networks import only each other, options, errors and cluster's `world`
and `collectives`.
"""
