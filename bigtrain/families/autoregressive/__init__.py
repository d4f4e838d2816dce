"""Families that learn one position given those before it."""
