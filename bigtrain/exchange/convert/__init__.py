"""Checkpoints of others as networks of ours: one module a source in sources/, which owns the names and shapes of its authors'
code; how a file of weights is opened safely (files.py), and the list of sources (registry.py). bigtrain/inference/conversion.py
and tests import it.
"""
