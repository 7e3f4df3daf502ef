"""The generator and discriminator networks of each recipe."""

import importlib

import keras

from trainer import randomness
from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.errors import UsageError
from trainer.models import norms


def build(config: Config, shape: ImageShape) -> tuple[keras.Model, keras.Model]:
    """Builds the generator and the discriminator named by `config.networks`.

    The generator maps [latents, labels] to images [N, H, W, C] float32 in the image
    range. The discriminator maps [images, labels] to logits [N] float32.  Both take
    labels only if the run is conditional.

    Raises:
      UsageError: if the networks do not support the image size or the conditioning.
    """
    if shape.size < 8 or shape.size % 4:
        raise UsageError(
            f"--image_size={shape.size}: the image size must be a multiple of 4 and at least 8."
        )
    module = importlib.import_module(f"trainer.models.{config.networks.replace('-', '_')}")
    with randomness.initial_values(config.seed, "generator"):
        generator = module.generator(config, shape)
    conditional_norm = config.conditional and config.g_conditioning == "batchnorm"
    kinds = {type(layer) for layer in generator.layers}
    if conditional_norm and norms.BatchNorm not in kinds:
        raise UsageError(
            f"--g_conditioning=batchnorm: the generator of {config.networks} has no batch norm; "
            "use concat or multiply."
        )
    with randomness.initial_values(config.seed, "discriminator"):
        discriminator = module.discriminator(config, shape)
    return generator, discriminator


def scaled(filters: int, width: float) -> int:
    """Returns the number of filters multiplied by the width setting, at least 1."""
    return max(1, round(filters * width))
