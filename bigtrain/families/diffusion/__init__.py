"""Denoising diffusion: the family (`diffusion`), the process (`process`) and its samplers (`samplers`)."""
