"""DCGAN with a sigmoid output, RMSprop and joint batches."""

from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="R. Atienza, Advanced Deep Learning with TensorFlow 2 and Keras, 2nd ed. (2020), "
    "after Radford et al., arXiv:1511.06434",
    networks=dict(latent_dim=100, latent_distribution="uniform", image_range="sigmoid"),
    loop=dict(
        batch_size=64,
        length="40000 steps",
        d_update="joint",
        optimizer="rmsprop",
        beta2=0.9,
        d_lr=2e-4,
        g_lr_schedule="inverse_time",
        d_lr_schedule="inverse_time",
        g_lr=1e-4,
        # 6e-8 and 3e-8 per step of 64 images.
        d_lr_decay_per_kimg=6e-8 / 0.064,
        g_lr_decay_per_kimg=3e-8 / 0.064,
        sample_every="500 steps",
        sample_grid=4,
        log_every_steps=1,
    ),
)
