"""Gated PixelCNN: the network, its output distributions, and cached sampling."""
