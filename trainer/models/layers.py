"""What the networks are built from: inputs, conditions, norms, weights, heads."""

from typing import Any, TypeAlias

import keras
import tensorflow as tf

from trainer import randomness
from trainer.config import Config
from trainer.data.images import ImageShape

Tensor: TypeAlias = Any  # a symbolic keras.KerasTensor

register = keras.saving.register_keras_serializable(package="trainer")


def initializer(config: Config) -> keras.initializers.Initializer:
    """A fresh initial value for a kernel."""
    return {
        "glorot": keras.initializers.GlorotUniform,
        "normal": lambda: keras.initializers.RandomNormal(stddev=0.02),
        "orthogonal": keras.initializers.Orthogonal,
    }[config.initializer]()


def generator_inputs(
    config: Config, shape: ImageShape
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """The inputs of a generator.

    Returns:
      The inputs (latents [N, latent_dim] and, if conditional, labels [N] int32), the
      vector that the network starts from, and the one-hot labels or None.
    """
    latents = keras.Input([config.latent_dim], name="latents")
    if not config.conditional:
        return [latents], latents, None
    labels, onehot = _label_input(shape)
    start = latents
    if config.g_conditioning == "multiply":
        embedding = _embedding(config.latent_dim)(onehot)
        start = keras.layers.Multiply()([latents, embedding])
    elif config.g_conditioning == "concat":
        start = keras.layers.Concatenate()([latents, onehot])
    return [latents, labels], start, onehot


def discriminator_inputs(
    config: Config, shape: ImageShape
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """The inputs of a discriminator: images, if conditional labels; as above."""
    side, channels = shape.size, shape.channels
    images = keras.Input([side, side, channels], name="images")
    if not config.conditional:
        return [images], images, None
    labels, onehot = _label_input(shape)
    start = images
    if config.d_conditioning == "multiply":
        embedding = _embedding(side * side * channels)(onehot)
        embedding = keras.layers.Reshape([side, side, channels])(embedding)
        start = keras.layers.Multiply()([images, embedding])
    elif config.d_conditioning == "concat":
        plane = keras.layers.Reshape([side, side, 1])(_embedding(side * side)(onehot))
        start = keras.layers.Concatenate()([images, plane])
    return [images, labels], start, onehot


def _label_input(shape: ImageShape) -> tuple[Tensor, Tensor]:
    labels = keras.Input([], dtype="int32", name="labels")
    return labels, keras.ops.one_hot(labels, shape.classes, dtype="float32")


def _embedding(size: int) -> keras.layers.Layer:
    # A product with one-hot rows: unlike an Embedding layer's, its gradient is dense,
    # which replicas sum in a fixed order.
    start = keras.initializers.RandomUniform(-0.05, 0.05)
    return keras.layers.Dense(size, use_bias=False, kernel_initializer=start)


def batch_norm(x: Tensor, config: Config, onehot: Tensor | None = None) -> Tensor:
    """Batch norm over all replicas; with `onehot`, as the config says, conditional.

    Conditional batch norm has a scale and a shift for each class (de Vries et al.,
    arXiv:1707.00683).
    """
    by_class = onehot is not None and config.g_conditioning == "batchnorm"
    x = keras.layers.BatchNormalization(
        momentum=config.bn_momentum,
        center=not by_class,
        scale=not by_class,
        synchronized=True,
    )(x)
    if not by_class:
        return x
    channels = x.shape[-1]
    per_channel = [1] * (len(x.shape) - 2) + [channels]
    scale = keras.layers.Dense(channels, use_bias=False, kernel_initializer="ones")(onehot)
    shift = keras.layers.Dense(channels, use_bias=False, kernel_initializer="zeros")(onehot)
    x = keras.layers.Multiply()([x, keras.layers.Reshape(per_channel)(scale)])
    return keras.layers.Add()([x, keras.layers.Reshape(per_channel)(shift)])


def image_output(x: Tensor, config: Config) -> Tensor:
    """The generator's last step: values in its image range, float32."""
    return keras.layers.Activation(config.image_range, dtype="float32", name="images")(x)


def conv_transpose(
    x: Tensor, config: Config, filters: int, size: int, stride: int, **options
) -> Tensor:
    """A transposed convolution of the generator, 'same' padding."""
    layer = keras.layers.Conv2DTranspose(
        filters,
        size,
        strides=stride,
        padding="same",
        kernel_initializer=initializer(config),
        **options,
    )
    return layer(x)


def conv(x: Tensor, config: Config, filters: int, size: int, stride: int = 1, **options) -> Tensor:
    """A convolution of the discriminator, 'same' padding, spectrally normalised if set."""
    kind = SpectralConv2D if config.d_spectral_norm else keras.layers.Conv2D
    layer = kind(
        filters,
        size,
        strides=stride,
        padding="same",
        kernel_initializer=initializer(config),
        **options,
    )
    return layer(x)


def dense(x: Tensor, config: Config, units: int, **options) -> Tensor:
    """A fully connected layer of the discriminator, spectrally normalised if set."""
    kind = SpectralDense if config.d_spectral_norm else keras.layers.Dense
    return kind(units, kernel_initializer=initializer(config), **options)(x)


def logit(features: Tensor, config: Config, onehot: Tensor | None) -> Tensor:
    """The discriminator's verdict [N] float32 on features [N, F].

    With projection, the product of the features and the class's embedding is added
    (Miyato and Koyama, arXiv:1802.05637).
    """
    verdict = dense(features, config, 1, dtype="float32")
    if onehot is not None and config.d_conditioning == "projection":
        embedding = dense(onehot, config, features.shape[-1], use_bias=False, dtype="float32")
        product = keras.layers.Dot(axes=1, dtype="float32")([features, embedding])
        verdict = keras.layers.Add(dtype="float32")([verdict, product])
    return keras.layers.Reshape([], dtype="float32")(verdict)


@register
class Dropout(keras.layers.Layer):
    """Dropout whose mask is a function of the step and the position in the batch.

    Its name, which must be given, sets its masks apart from those of other layers.
    """

    def __init__(self, rate: float, *, name: str, **options) -> None:
        super().__init__(name=name, **options)
        self.rate = rate

    def call(self, inputs, training=None):
        """Zeroes a share `rate` of the inputs and scales up the others, in training."""
        if not training:
            return inputs
        draws = randomness.current()
        parts = inputs.shape[0] // draws.rows
        draw = draws.uniform(self.name, tuple(inputs.shape[1:]), parts)
        kept = tf.cast(draw >= self.rate, inputs.dtype)
        return inputs * kept / (1.0 - self.rate)

    def get_config(self):
        """Its arguments, for saving."""
        return {**super().get_config(), "rate": self.rate}


class _SpectralLayer(keras.layers.Layer):
    """A kernel divided by its largest singular value (Miyato et al., arXiv:1802.05957).

    One power iteration per call in training mode.  The vector it keeps is a function
    of the weights alone, so that every replica has the same one.
    """

    def __init__(
        self, units: int, *, use_bias=True, kernel_initializer="glorot_uniform", **options
    ):
        super().__init__(**options)
        self.units, self.use_bias = units, use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def add_weights(self, kernel_shape: tuple[int, ...]) -> None:
        """Makes kernel, bias and the singular vector `u` [units]."""
        # float32 whatever the policy: a power iteration in half precision drifts.
        self.kernel = self.add_weight(
            shape=kernel_shape,
            initializer=self.kernel_initializer,
            name="kernel",
            autocast=False,
        )
        self.u = self.add_weight(
            shape=[self.units],
            initializer=keras.initializers.RandomNormal(),
            name="u",
            trainable=False,
            autocast=False,
        )
        if self.use_bias:
            self.bias = self.add_weight(shape=[self.units], initializer="zeros", name="bias")

    def normalized_kernel(self, training: bool | None) -> tf.Tensor:
        """The kernel divided by v' kernel u, in the layer's compute dtype."""
        kernel = tf.convert_to_tensor(self.kernel)
        matrix = tf.reshape(kernel, [-1, self.units])
        constant = tf.stop_gradient(matrix)
        old = tf.convert_to_tensor(self.u)
        v = tf.math.l2_normalize(tf.linalg.matvec(constant, old))
        u = tf.math.l2_normalize(tf.linalg.matvec(constant, v, transpose_a=True))
        if training:
            self.u.assign(u)
        sigma = tf.tensordot(v, tf.linalg.matvec(matrix, u), 1)
        return tf.cast(kernel / sigma, self.compute_dtype)


@register
class SpectralDense(_SpectralLayer):
    """A Dense layer with spectral norm."""

    def build(self, input_shape) -> None:
        """Makes the weights for inputs [N, F]."""
        self.add_weights((input_shape[-1], self.units))

    def call(self, inputs, training=None):
        """Maps [N, F] to [N, units]."""
        outputs = tf.matmul(inputs, self.normalized_kernel(training))
        return outputs + self.bias if self.use_bias else outputs


@register
class SpectralConv2D(_SpectralLayer):
    """A Conv2D layer, 'same' padding, with spectral norm."""

    def __init__(self, units: int, kernel_size: int, *, strides=1, padding="same", **options):
        super().__init__(units, **options)
        self.kernel_size, self.strides, self.padding = kernel_size, strides, padding.upper()

    def build(self, input_shape) -> None:
        """Makes the weights for inputs [N, H, W, C]."""
        self.add_weights((self.kernel_size, self.kernel_size, input_shape[-1], self.units))

    def compute_output_shape(self, input_shape):
        """[N, ceil(H / strides), ceil(W / strides), units]."""
        batch, height, width, _ = input_shape
        return (batch, -(-height // self.strides), -(-width // self.strides), self.units)

    def call(self, inputs, training=None):
        """Convolves [N, H, W, C]."""
        kernel = self.normalized_kernel(training)
        outputs = tf.nn.conv2d(inputs, kernel, self.strides, self.padding)
        return outputs + self.bias if self.use_bias else outputs
