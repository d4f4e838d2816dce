"""Families with an encoder and a decoder: VQ-VAE and VQ-VAE-2 (`vqvae`), variational autoencoders (`vae`)."""
