"""Multi-layer perceptrons, both networks updated together."""

from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="Lornatang, Generative-Adversarial-Networks (TensorFlow 2.0)",
    networks=dict(latent_dim=100),
    loop=dict(
        batch_size=128,
        length="50 epochs",
        d_update="separate",
        simultaneous=True,
        g_lr=1e-4,
        d_lr=1e-4,
        checkpoint_every="15 epochs",
        sample_every="1 epochs",
        sample_grid=4,
    ),
    by_dataset=dict(cifar10=dict(batch_size=64)),
)
