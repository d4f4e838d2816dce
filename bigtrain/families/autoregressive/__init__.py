"""Families that predict each position from those before it: priors over codes or pixels (`prior`)."""
