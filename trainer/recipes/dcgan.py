"""This project's default: the DCGAN guidelines with today's stabilisers."""

from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="Radford et al., arXiv:1511.06434; spectral norm and hinge: Miyato et al., "
    "arXiv:1802.05957; projection: Miyato and Koyama, arXiv:1802.05637",
    architecture="Transposed convolutions up to the image size and strided convolutions down from "
    "it, sized to 28 to 128 pixels; batch norm in the generator, spectral norm in the "
    "discriminator.",
    updates="One discriminator update per step on a joint batch, hinge loss; the generator is "
    "updated with the same fakes.",
    differences=(
        "This project's default: the DCGAN guidelines with spectral norm, hinge loss, "
        "projection and EMA, sized for a workstation.",
    ),
    networks=dict(
        latent_dim=100,
        g_conditioning="batchnorm",
        d_conditioning="projection",
        d_weights="spectral",
        initializer="normal",
    ),
    loop=dict(
        conditional=True,
        batch_size=64,
        length="150 kimg",
        loss="hinge",
        d_update="joint",
        reuse_fakes=True,
        beta1=0.5,
        ema_half_life_kimg=10.0,
    ),
)
