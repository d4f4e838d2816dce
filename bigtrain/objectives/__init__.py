"""Losses as data: what a recipe may choose from, each an options class beside the function that it configures.

Imported by families, which hand in networks and tensors: nothing here knows a family.
"""
