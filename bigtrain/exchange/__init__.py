"""Exports: diffusers pipelines of trained families, and the folders that hold them. Imports families and below; inference and
launch/ import it, and so do the `pipeline.py` files of exported folders.
"""
