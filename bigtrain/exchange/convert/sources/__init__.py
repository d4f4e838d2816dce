"""A module for each source: the authors' names as ours, and what the shapes of a checkpoint say of the recipe. Each names the
family that its networks are of, as no other package outside families/, networks/ and objectives/ may.
"""
