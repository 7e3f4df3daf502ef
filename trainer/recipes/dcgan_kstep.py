"""Convolutional GAN with K discriminator steps on the same reals."""

from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="a GAN on Fashion-MNIST with K discriminator steps per generator step, after "
    "Goodfellow et al., arXiv:1406.2661, algorithm 1",
    architecture="3x3 transposed convolutions without normalisation in the generator; 3x3 "
    "convolutions, a dense layer and dropout in the discriminator.",
    updates="K discriminator updates per step (--d_steps) on the same reals with new fakes, "
    "each on a joint batch, then one generator update.",
    differences=(
        "Dropout is active in training; the source called the discriminator in "
        "inference mode, so that its dropout never acted.",
    ),
    networks=dict(latent_dim=150, image_range="sigmoid", g_norm="none", d_activation="relu"),
    loop=dict(
        split="all",
        batch_size=64,
        length="30 epochs",
        d_update="joint",
        d_steps=1,
        repeat_reals=True,
        beta1=0.5,
        g_lr=1e-5,
        d_lr=3e-5,
        sample_every="2 epochs",
        sample_grid=9,
    ),
)
