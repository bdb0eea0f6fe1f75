"""The networks: base and draft DiT, the Wan VAE, the small codec of ``nano``, the prompt."""
