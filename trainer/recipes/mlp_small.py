"""Multi-layer perceptrons, the discriminator updated on reals, then on fakes."""

from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="E. Linder-Norén, Keras-GAN, gan.py",
    networks=dict(latent_dim=100, bn_momentum=0.8),
    loop=dict(
        batch_size=16,
        length="10000 steps",
        d_update="sequential",
        d_lr=1e-3,
        g_lr=1e-3,
        sample_every="200 steps",
        sample_grid=5,
        log_every_steps=1,
    ),
)
