"""Conditional GAN: the class label as the condition, multiplied in."""

from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="Mirza and Osindero, arXiv:1411.1784, with label embeddings multiplied into "
    "the latents and the image",
    networks=dict(
        latent_dim=100,
        g_conditioning="multiply",
        d_conditioning="multiply",
        d_norm="batch",
        d_slope=0.01,
    ),
    loop=dict(
        conditional=True,
        batch_size=128,
        length="50 epochs",
        d_update="sequential",
        beta1=0.5,
        g_lr=2e-4,
        d_lr=2e-4,
    ),
)
