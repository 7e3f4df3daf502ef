"""Builds the generator and the discriminator of a run."""

from collections.abc import Sequence

import keras

from trainer import recipes
from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.config.model_settings import CONDITIONAL_NORM
from trainer.errors import TrainerError, UsageError
from trainer.models import layers, norms, randomness
from trainer.recipes import files


def build_networks(config: Config, shape: ImageShape) -> tuple[keras.Model, keras.Model]:
    """Builds the generator and the discriminator named by `config.networks`.

    The generator maps [latents, labels] to images [N, H, W, C] float32 in the image
    range. The discriminator maps [images, labels] to logits [N] float32.  Both take
    labels only if the run is conditional.

    Raises:
      UsageError: if the networks do not support the image size or the conditioning, or if the
        functions of a recipe file fail or build something else.
    """
    sides = recipes.network_sides(config, shape.sides)
    crop = None if sides == shape.sides else shape.sides
    shape = ImageShape(*sides, shape.channels, shape.classes, crop)
    generator = _cropped(_build(config, shape, "generator"), shape)
    conditional_norm = config.conditional and config.g_conditioning in CONDITIONAL_NORM
    kinds = {type(layer) for layer in generator.layers}
    if conditional_norm and norms.BatchNorm not in kinds:
        raise UsageError(
            f"--g_conditioning={config.g_conditioning}: the generator of "
            f"{files.shown_name(config.networks)} has no batch norm. Use concat, embedding or "
            "multiply."
        )
    return generator, _build(config, shape, "discriminator")


def _build(config: Config, shape: ImageShape, name: str) -> keras.Model:
    """Builds one network by the function of its recipe, and checks its inputs and outputs."""
    shown = files.shown(config.networks)
    function = getattr(recipes.get(config.networks), name)
    try:
        with randomness.initial_values(config.seed, name):
            network = function(config, shape)
    except TrainerError:
        raise
    except Exception as error:
        if not files.is_file(config.networks):
            raise
        reason = files.failure(error, function.__code__.co_filename)
        raise UsageError(f"{shown}: {name}(config, shape) failed ({reason}).") from None
    made = (None, *shape.sides, shape.channels)
    judged = (None, *(shape.crop or shape.sides), shape.channels)
    inputs, expected = {
        "generator": ((None, config.latent_dim), made),
        "discriminator": (judged, (None,)),
    }[name]
    if not isinstance(network, keras.Model) or network.output_shape != expected:
        built = getattr(network, "output_shape", type(network).__name__)
        raise UsageError(
            f"{shown}: {name}(config, shape) must return a keras.Model with "
            f"outputs of shape {expected}, not {built}."
        )
    if not _fits(network.inputs[0].shape, inputs):
        raise UsageError(
            f"{shown}: the first input of the {name} must have the shape {inputs}, not "
            f"{tuple(network.inputs[0].shape)}."
        )
    if config.conditional and len(network.inputs) < 2:
        raise UsageError(f"{shown}: the {name} has no input for labels. Use --noconditional.")
    return network


def _cropped(generator: keras.Model, shape: ImageShape) -> keras.Model:
    """Returns a generator of the middle of the images, if they are larger than those of a run."""
    if shape.crop is None:
        return generator
    edges = layers.edges_of_crop(shape.sides, shape.crop)
    images = keras.layers.Cropping2D(edges, dtype="float32", name="crop")(generator.outputs[0])
    return keras.Model(generator.inputs, images, name=generator.name)


def _fits(shape: Sequence[int | None], wanted: Sequence[int | None]) -> bool:
    """Returns whether an input accepts a shape; it may leave sizes open, as None."""
    return len(shape) == len(wanted) and all(
        size in (None, other) for size, other in zip(shape, wanted, strict=True)
    )
