"""Families that are trained by a game between networks."""
