"""Building blocks of the networks: inputs, conditioning, layers and outputs."""

import functools
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from trainer.config import Config, schedules
from trainer.config.dataset import ImageShape
from trainer.config.schedules import Value
from trainer.models import convolutions, kernels, norms, randomness
from trainer.models.convolutions import register
from trainer.models.resize_convolution import NormalizedResizeConv2D, ResizeConv2D
from trainer.models.schedules import current

Tensor: TypeAlias = Any  # a symbolic keras.KerasTensor


def scaled(filters: float, width: float) -> int:
    """Returns the number of filters multiplied by the width setting, at least 1."""
    return max(1, round(filters * width))


def initializer(config: Config, gain: float = 1.0) -> keras.initializers.Initializer:
    """Returns a kernel initializer with its own seed.

    Args:
      config: the configuration of the run.
      gain: factor of the initial values, except of those with a fixed standard deviation.
    """
    scaled_by = functools.partial(keras.initializers.VarianceScaling, distribution="uniform")
    return {
        "glorot": functools.partial(scaled_by, gain**2, "fan_avg"),
        "he": functools.partial(scaled_by, 2.0 * gain**2, "fan_in"),
        "normal": functools.partial(keras.initializers.RandomNormal, stddev=0.02),
        "truncated_normal": functools.partial(keras.initializers.TruncatedNormal, stddev=0.02),
        "orthogonal": functools.partial(keras.initializers.Orthogonal, gain),
    }[config.initializer](seed=randomness.initial_seed())


def generator_inputs(
    config: Config, shape: ImageShape
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Creates the inputs of a generator.

    Returns:
      The inputs (latents [N, latent_dim] and, if conditional, labels [N] int32), the
      input vector of the first layer, and the one-hot labels or None.
    """
    latents = keras.Input([config.latent_dim], name="latents")
    if not config.conditional:
        return [latents], latents, None
    labels, onehot = _label_input(shape)
    start = latents
    if config.g_conditioning == "multiply":
        embedding = _factor(config.latent_dim)(onehot)
        start = keras.layers.Multiply()([latents, embedding])
    elif config.g_conditioning == "embedding":
        embedding = _embedding(config.latent_dim, stddev=shape.classes**-0.5)(onehot)
        start = keras.layers.Concatenate()([latents, embedding])
    elif config.g_conditioning != "batchnorm_alone":
        # Also with conditional batch norm, whose scales and shifts alone learn too slowly.
        start = keras.layers.Concatenate()([latents, onehot])
    return [latents, labels], start, onehot


def discriminator_inputs(
    config: Config, shape: ImageShape
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Creates the inputs of a discriminator.

    If the images are the middle of those that the networks are built for, zeros are added around
    them.

    Returns:
      The inputs (images [N, H, W, C] and, if conditional, labels [N] int32), the tensor
      [N, H, W, C or C + 1] of the first layer, and the one-hot labels or None.
    """
    height, width, channels = shape.height, shape.width, shape.channels
    images = keras.Input([*(shape.crop or shape.sides), channels], name="images")
    start = images
    if shape.crop is not None:
        edges = edges_of_crop(shape.sides, shape.crop)
        start = keras.layers.ZeroPadding2D(edges, name="pad")(images)
    if not config.conditional:
        return [images], start, None
    labels, onehot = _label_input(shape)
    if config.d_conditioning == "multiply":
        embedding = _factor(height * width * channels)(onehot)
        embedding = keras.layers.Reshape([height, width, channels])(embedding)
        start = keras.layers.Multiply()([start, embedding])
    elif config.d_conditioning == "concat":
        plane = _embedding(height * width, stddev=0.05)(onehot)
        plane = keras.layers.Reshape([height, width, 1])(plane)
        start = keras.layers.Concatenate()([start, plane])
    return [images, labels], start, onehot


def edges_of_crop(
    sides: tuple[int, int], crop: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the pixels above and below, and left and right of, the middle of an image.

    Args:
      sides: height and width of the image.
      crop: height and width of its middle.
    """
    (above, below), (left, right) = (
        ((side - part) // 2, side - part - (side - part) // 2)
        for side, part in zip(sides, crop, strict=True)
    )
    return (above, below), (left, right)


def halvings(shape: ImageShape) -> int:
    """Returns how often both sides can be halved and stay whole numbers of at least 4 pixels."""
    count, sides = 0, shape.sides
    while all(side % 2 == 0 and side >= 8 for side in sides):
        sides, count = (sides[0] // 2, sides[1] // 2), count + 1
    return count


def _label_input(shape: ImageShape) -> tuple[Tensor, Tensor]:
    labels = keras.Input([], dtype="int32", name="labels")
    return labels, keras.ops.one_hot(labels, shape.classes, dtype="float32")


def _factor(size: int) -> keras.layers.Layer:
    # Initial values near 1 preserve latents and images. With values near 0 they would
    # fall below the epsilon of the first batch norm.
    return _embedding(size, mean=1.0, stddev=0.5)


def _embedding(size: int, **start: float) -> keras.layers.Layer:
    # A product with one-hot rows: unlike an Embedding layer's, its gradient is dense,
    # which replicas sum in a fixed order.
    normal = keras.initializers.RandomNormal(**start, seed=randomness.initial_seed())
    return keras.layers.Dense(size, use_bias=False, kernel_initializer=normal)


def g_norm(x: Tensor, config: Config, onehot: Tensor | None) -> Tensor:
    """Applies the generator's norm to x [N, ..., C]."""
    return norms.norm(x, config, config.g_norm, onehot)


def image_output(x: Tensor, config: Config, *, linear: bool = False) -> Tensor:
    """Returns the images in float32 after the output activation, which is omitted if `linear`."""
    activation = "linear" if linear else config.image_range
    return keras.layers.Activation(activation, dtype="float32", name="images")(x)


def g_dense(x: Tensor, config: Config, units: int, **options: Any) -> Tensor:
    """Applies a fully connected layer of the generator, [N, F] to [N, units]."""
    return _dense(x, config, config.g_weights, units, **options)


def g_conv(x: Tensor, config: Config, filters: int, size: int, **options: Any) -> Tensor:
    """Applies a convolution of the generator, 'same' padding."""
    return _conv(x, config, config.g_weights, filters, size, 1, **options)


def conv_transpose(
    x: Tensor, config: Config, filters: int, size: int, stride: int, **options: Any
) -> Tensor:
    """Applies a transposed convolution of the generator, 'same' padding."""
    options.update(strides=stride, kernel_initializer=initializer(config))
    resizes = stride == 2 and config.g_upsampling == "resize"
    if config.g_weights != "plain":
        layer = NormalizedResizeConv2D if resizes else kernels.NormalizedConv2DTranspose
        return layer(filters, size, norm=config.g_weights, **options)(x)
    if resizes:
        return ResizeConv2D(filters, size, **options)(x)
    return convolutions.Conv2DTranspose(filters, size, padding="same", **options)(x)


def conv(
    x: Tensor, config: Config, filters: int, size: int, stride: int = 1, *, first: bool = False
) -> Tensor:
    """Applies a discriminator convolution, with noise before all but the first layer."""
    if not first:
        x = _layer_noise(x, config, f"{filters}x{size}x{stride}")
    return _conv(x, config, config.d_weights, filters, size, stride)


def dense(x: Tensor, config: Config, units: int, *, first: bool = False) -> Tensor:
    """Applies a discriminator dense layer, with noise before all but the first layer."""
    if not first:
        x = _layer_noise(x, config, f"{units}")
    return _dense(x, config, config.d_weights, units)


def d_norm_activation(x: Tensor, config: Config, *, first: bool = False) -> Tensor:
    """Applies the discriminator's norm (except on the first layer) and activation."""
    return d_activation(x if first else norms.norm(x, config, config.d_norm), config)


def d_activation(x: Tensor, config: Config) -> Tensor:
    """Applies the discriminator's activation."""
    if config.d_activation == "leaky_relu":
        return keras.layers.LeakyReLU(config.d_slope)(x)
    return keras.layers.Activation(config.d_activation)(x)


def _conv(
    x: Tensor,
    config: Config,
    weights: str,
    filters: int,
    size: int,
    stride: int,
    **options: Any,
) -> Tensor:
    options.update(strides=stride, kernel_initializer=initializer(config))
    if weights != "plain":
        return kernels.NormalizedConv2D(filters, size, norm=weights, **options)(x)
    return convolutions.Conv2D(filters, size, padding="same", **options)(x)


def _dense(x: Tensor, config: Config, weights: str, units: int, **options: Any) -> Tensor:
    options.update(kernel_initializer=initializer(config))
    if weights != "plain":
        return kernels.NormalizedDense(units, norm=weights, **options)(x)
    return keras.layers.Dense(units, **options)(x)


def _layer_noise(x: Tensor, config: Config, layer: str) -> Tensor:
    shape = "x".join(map(str, x.shape[1:]))
    return noise(x, config, f"noise_{shape}_{layer}")


def noise(x: Tensor, config: Config, name: str) -> Tensor:
    """Applies the noise of --d_layer_noise; the name tells it from that of other layers."""
    return GaussianNoise(config.d_layer_noise, name=name)(x) if config.d_layer_noise else x


def logit(features: Tensor, config: Config, onehot: Tensor | None) -> Tensor:
    """Maps features [N, F] to the discriminator's logits [N] float32.

    With projection, the dot product of the features and the class embedding is added
    (Miyato and Koyama, arXiv:1802.05637).
    """
    weights = config.d_weights
    logits = _dense(features, config, weights, 1, dtype="float32")
    if onehot is not None and config.d_conditioning == "projection":
        size = features.shape[-1]
        embedding = _dense(onehot, config, weights, size, use_bias=False, dtype="float32")
        product = keras.layers.Dot(axes=1, dtype="float32")([features, embedding])
        logits = keras.layers.Add(dtype="float32")([logits, product])
    return keras.layers.Reshape([], dtype="float32")(logits)


@register
class Dropout(keras.layers.Layer):
    """Dropout whose mask is a function of the step and the position in the batch.

    The required name distinguishes its masks from those of other layers.
    """

    def __init__(self, rate: float, *, name: str, **options: Any) -> None:
        super().__init__(name=name, **options)
        self.rate = rate

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """In training, zeroes a share `rate` of the inputs and scales up the others."""
        if not training:
            return inputs
        draws = randomness.current()
        parts = inputs.shape[0] // draws.rows
        draw = draws.uniform(self.name, tuple(inputs.shape[1:]), parts)
        kept = tf.cast(draw >= self.rate, inputs.dtype)
        return inputs * kept / (1.0 - self.rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, for saving."""
        return {**super().get_config(), "rate": self.rate}


@register
class GaussianNoise(keras.layers.Layer):
    """Gaussian noise that is a function of the step and the position in the batch.

    The standard deviation is a number, or a schedule, also as text.  The required name
    distinguishes its noise from that of other layers.
    """

    def __init__(self, stddev: Value | str, *, name: str, **options: Any) -> None:
        super().__init__(name=name, **options)
        self.stddev = schedules.parse(str(stddev))

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """In training, adds noise of the present standard deviation."""
        if not training:
            return inputs
        draws = randomness.current()
        parts = inputs.shape[0] // draws.rows
        noise = draws.normal(self.name, tuple(inputs.shape[1:]), parts)
        stddev = current(self.stddev, draws.images)
        return inputs + tf.cast(stddev * noise, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, for saving."""
        stddev = self.stddev if isinstance(self.stddev, float) else str(self.stddev)
        return {**super().get_config(), "stddev": stddev}
