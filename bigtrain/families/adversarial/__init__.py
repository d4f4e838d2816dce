"""Families whose networks are trained against each other: class-conditional GANs (`gan`)."""
