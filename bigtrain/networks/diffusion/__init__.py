"""Denoising networks of diffusion models."""
