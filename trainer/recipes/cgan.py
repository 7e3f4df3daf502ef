"""Conditional GAN: the class label as the condition, multiplied in."""

from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="Mirza and Osindero, arXiv:1411.1784, with label embeddings multiplied into "
    "the latents and the image",
    architecture="3x3 transposed convolutions and convolutions; label embeddings are multiplied "
    "into the latent vector and into the image.",
    updates="Two discriminator updates per step, one on reals and one on fakes with the same "
    "labels, then one generator update with new labels.",
    differences=(
        "The source has networks only: the training loop and its settings are this project's.",
        "Label embeddings are initialised around 1; around 0, Keras's default, the "
        "latent vector falls below the epsilon of the first batch norm.",
        "It obeys labels far less than `dcgan` in equal time; prefer `dcgan` if the "
        "class of an image matters.",
    ),
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
