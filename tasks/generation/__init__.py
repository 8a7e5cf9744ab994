"""Text-to-image generation in three stages, each of them a task of its own.

After Würstchen (Pernias et al., arXiv:2306.00637), in small: A, an autoencoder with a
codebook (`vector_quantization.py`); B, diffusion on its latents given a much smaller
semantic code (`latent_diffusion.py`); C, diffusion of the semantic code given a caption
(`prior.py`). They are trained in this order, each on what the frozen ones before make,
and run in the opposite one (`pipeline.py`).
"""
