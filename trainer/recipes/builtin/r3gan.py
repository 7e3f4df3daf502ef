"""Residual networks without normalisation, with a relativistic loss and two penalties."""

from __future__ import annotations

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.errors import UsageError
from trainer.models.lazy import grouped, keras, layers
from trainer.recipes.recipe import Recipe

SPAN = "over 20000 kimg"


def _gamma(start: float, end: float) -> dict[str, str]:
    """Returns the weights of both penalties."""
    return dict.fromkeys(("r1", "r2"), f"cosine {start} {end} {SPAN}")


FFHQ = dict(
    batch_size=256,
    augment_strength=f"cosine 0 0.3 {SPAN}",
    ema_half_life_kimg=f"cosine 0 500 {SPAN}",
)
RECIPE = Recipe(
    source="Huang et al., arXiv:2501.05441",
    architecture="Residual blocks around grouped 3x3 convolutions, without normalisation; "
    "resampling with the filter [1, 3, 3, 1]; the smallest stage in float32. --g_width=0.25 "
    "--d_width=0.25 makes small ones for a GPU; docs/objectives.md has a command for a CPU. "
    "ImageNet has --g_width=2 --d_width=2 --hyperparameters=group_size=32, and at 64 pixels "
    "widest_side=64 besides.",
    updates="One discriminator update per step with the penalties R1 and R2, then one generator "
    "update on new fakes and reals of its own; schedules over 20,000 kimg of the rates, of Adam's "
    "beta2, of both penalties, of the EMA and of the augmentation.",
    differences=(
        "Adam's epsilon is 1e-7.",
        "Sides that are not published have the penalties of the next smaller one that is: 32, 64 "
        "and 256 pixels. Those of ImageNet are --r1='cosine 0.5 0.05 over 200000 kimg' at 32 "
        "pixels, with the same --r2, and 1 and 0.1 at 64 pixels.",
        "Digits are not mirrored.",
    ),
    networks=dict(
        latent_dim=64,
        g_conditioning="embedding",
        d_conditioning="projection",
        g_norm="none",
        initializer="normal",
    ),
    loop=dict(
        horizontal_flip=True,
        batch_size=512,
        length="250000 kimg",
        loss="relativistic",
        **_gamma(0.05, 0.005),
        update_rule="joint",  # without batch norm, the same as two batches
        augment="ada",
        augment_policy="blit,geometry,color:0.5,cutout",
        augment_strength=f"cosine 0 0.55 {SPAN}",
        g_lr=f"cosine 2e-4 5e-5 {SPAN}",
        d_lr=f"cosine 2e-4 5e-5 {SPAN}",
        beta1=0.0,
        beta2=f"cosine 0.9 0.99 {SPAN}",
        ema_half_life_kimg=f"cosine 0 5000 {SPAN}",
        ema_ramp=0.0,
    ),
    by_dataset={name: dict(horizontal_flip=False) for name in ("digits", "mnist")},
    by_size={64: {**FFHQ, **_gamma(2.0, 0.2)}, 256: {**FFHQ, **_gamma(150.0, 15.0)}},
    hyperparameters=dict(blocks=2, group_size=16, widest_side=32),
    side_multiple=0,
)

WIDTH = 768  # channels of a stage; half at each double side beyond the hyper-parameter widest_side
EXPANSION = 2


def generator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds stages from 4 pixels up to the image size."""
    return build_generator(config, shape, stages(config, shape, config.g_width))


def discriminator(config: Config, shape: ImageShape) -> keras.Model:
    """Builds stages from the image size down to 4 pixels."""
    return build_discriminator(config, shape, stages(config, shape, config.d_width))


def stages(config: Config, shape: ImageShape, factor: float) -> grouped.Stages:
    """Returns the stages of a network whose widths are scaled by a factor.

    Raises:
      UsageError: if a setting asks for something that these networks do not have.
    """
    for name, only in (
        ("g_norm", "none"), ("d_norm", "none"), ("g_weights", "plain"), ("d_weights", "plain"),
        ("d_activation", "leaky_relu"), ("d_slope", grouped.SLOPE), ("d_layer_noise", 0.0),
        ("initializer", "normal"),
    ):  # fmt: skip
        value = getattr(config, name)
        if value != only:
            raise UsageError(
                f"--{name}={value}: the networks of r3gan take only {only}, because the scale of "
                "their initial values depends on it. Omit the flag."
            )
    own = config.hyperparameter_values
    multiple = max(1, own["group_size"] // EXPANSION)  # whole groups inside the blocks
    ups, widths = layers.halvings(shape), []
    sides = (shape.height >> ups, shape.width >> ups)
    for stage in range(ups + 1):
        wide = WIDTH / max(1, -(-(min(sides) << stage) // own["widest_side"]))
        widths.append(multiple * layers.scaled(wide / multiple, factor))
    return grouped.Stages(sides, tuple(widths), own["blocks"], EXPANSION, own["group_size"])


def build_generator(config: Config, shape: ImageShape, form: grouped.Stages) -> keras.Model:
    """Builds a generator: a learned basis, stages, and a linear output without tanh."""
    inputs, x, _ = layers.generator_inputs(config, shape)
    width, dtype = form.widths[0], form.dtype(0)
    x = keras.layers.Dense(
        width, use_bias=False, kernel_initializer=grouped.normal(x.shape[-1] ** -0.5),
        name="from_latents", dtype=dtype,
    )(x)  # fmt: skip
    x = keras.layers.EinsumDense(
        "nc,hwc->nhwc", (*form.sides, width), kernel_initializer=grouped.normal(1.0), name="basis",
        dtype=dtype,
    )(x)  # fmt: skip
    for stage in range(len(form.widths)):
        x = grouped.up_stage(x, form, stage)
    x = grouped.pointwise(x, shape.channels, "to_image")
    return keras.Model(inputs, layers.image_output(x, config, linear=True), name="generator")


def build_discriminator(config: Config, shape: ImageShape, form: grouped.Stages) -> keras.Model:
    """Builds a discriminator, whose logit with labels is the product with their embedding."""
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    x = grouped.pointwise(x, form.widths[-1], "from_image")
    for stage in reversed(range(len(form.widths))):
        x = grouped.down_stage(x, form, stage)
    width, dtype = form.widths[0], form.dtype(0)
    x = keras.layers.EinsumDense(
        "nhwc,hwc->nc", (width,), kernel_initializer=grouped.normal(form.pixels**-0.5),
        name="basis", dtype=dtype,
    )(x)  # fmt: skip
    projects = onehot is not None and config.d_conditioning == "projection"
    x = keras.layers.Dense(
        width if projects else 1, use_bias=False, kernel_initializer=grouped.normal(width**-0.5),
        name="head", dtype=dtype,
    )(x)  # fmt: skip
    if projects:
        start = grouped.normal((shape.classes * width) ** -0.5)
        embedding = keras.layers.Dense(
            width, use_bias=False, kernel_initializer=start, name="label_embedding", dtype=dtype
        )(onehot)
        x = keras.layers.Dot(axes=1, dtype=dtype, name="product")([x, embedding])
    logits = keras.layers.Reshape([], dtype=dtype)(x)
    return keras.Model(inputs, logits, name="discriminator")
