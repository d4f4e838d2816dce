"""Normalizing flows: bijections with tractable determinants."""
