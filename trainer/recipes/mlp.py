"""Multi-layer perceptrons, both networks updated together."""

from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="Lornatang, Generative-Adversarial-Networks (TensorFlow 2.0)",
    architecture="Fully connected layers of 256, 512 and 1024 units in the generator, 1024, 512 "
    "and 256 in the discriminator.",
    updates="Both networks are updated together, from the same weights and the same fakes.",
    differences=("Each step draws new latent vectors; the source trained on 16 fixed ones.",),
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
