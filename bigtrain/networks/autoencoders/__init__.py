"""Encoders and decoders, one paper a file."""
