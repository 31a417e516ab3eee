"""The trainings: tokenizer, latent diffusion prior, PixelCNN prior."""
