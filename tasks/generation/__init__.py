"""Text-to-image generation in three stages, each a task of its own.

After Würstchen (Pernias et al., arXiv:2306.00637), in small: A, an autoencoder with a
codebook (`vector_quantization.py`); B, diffusion of its latents given a much smaller
semantic code (`latent_diffusion.py`); C, diffusion of the semantic code given a class
(`prior.py`). They are trained in this order, each on the output of the frozen stages
before, and run in the opposite order (`pipeline.py`).
"""
