"""Encoders and decoders, one file per paper."""
