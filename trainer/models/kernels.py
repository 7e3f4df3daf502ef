"""Layers whose kernel is normalised: by its largest singular value, or per output."""

import keras
import numpy as np
import tensorflow as tf

from trainer.models.convolutions import conv2d, conv2d_transpose, register, with_bias


def _unit_vector(shape, dtype=None):
    """A fixed start for power iterations."""
    start = tf.random.stateless_normal(shape, seed=[0, 0], alg="philox")
    return tf.cast(tf.math.l2_normalize(start), dtype or tf.float32)


class NormalizedKernel(keras.layers.Layer):
    """A layer with a normalised kernel and a bias.

    `norm` "spectral": the kernel divided by its largest singular value, which `iterate`
    keeps up with (Miyato et al., arXiv:1802.05957).  The vector `u` that it keeps is a
    function of the weights alone: every replica has the same one.

    `norm` "weight": each output's part of the kernel divided by its length and times a
    learned one (Salimans and Kingma, arXiv:1602.07868).
    """

    def __init__(
        self,
        units: int,
        *,
        norm: str,
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        **options,
    ) -> None:
        super().__init__(**options)
        self.units, self.norm, self.use_bias = units, norm, use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def get_config(self):
        """Its arguments, for saving."""
        return {
            **super().get_config(),
            "units": self.units,
            "norm": self.norm,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }

    def add_weights(self, kernel_shape: tuple[int, ...], output_axis: int = -1) -> None:
        """Makes kernel and bias, and `u` [units] or `length` [units]."""
        self.output_axis = output_axis % len(kernel_shape)
        # float32 whatever the policy: a power iteration in half precision drifts.
        self.kernel = self.add_weight(
            shape=kernel_shape,
            initializer=self.kernel_initializer,
            name="kernel",
            autocast=False,
        )
        if self.norm == "spectral":
            self.u = self.add_weight(
                shape=[self.units],
                initializer=_unit_vector,
                name="u",
                trainable=False,
                autocast=False,
            )
        else:
            self.length = self.add_weight(
                shape=[self.units], initializer="ones", name="length", autocast=False
            )
            self.length.assign(tf.norm(self._matrix(tf.convert_to_tensor(self.kernel)), axis=0))
        if self.use_bias:
            self.bias = self.add_weight(shape=[self.units], initializer="zeros", name="bias")

    def iterate(self) -> None:
        """A power iteration for `u`: call it once before each update of the network."""
        if self.norm == "spectral":
            matrix = self._matrix(tf.convert_to_tensor(self.kernel))
            v = tf.linalg.matvec(matrix, self.u)
            self.u.assign(tf.math.l2_normalize(tf.linalg.matvec(matrix, v, transpose_a=True)))

    def normalized_kernel(self) -> tf.Tensor:
        """The kernel as it is applied, float32."""
        kernel = tf.convert_to_tensor(self.kernel)
        if self.norm == "spectral":
            # The singular value v' W u with v = W u / |W u|; its gradient is v u'.
            kernel /= tf.norm(tf.linalg.matvec(self._matrix(kernel), self.u))
        else:
            matrix = self._matrix(kernel)
            factor = tf.convert_to_tensor(self.length) * tf.math.rsqrt(
                tf.reduce_sum(tf.square(matrix), 0) + 1e-12
            )
            shape = [1] * len(kernel.shape)
            shape[self.output_axis] = self.units
            kernel *= tf.reshape(factor, shape)
        return kernel

    def cast_kernel(self) -> tf.Tensor:
        """The kernel as it is applied, in the layer's compute dtype."""
        return tf.cast(self.normalized_kernel(), self.compute_dtype)

    def _matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """The kernel as [inputs, units]."""
        axes = [a for a in range(len(kernel.shape)) if a != self.output_axis]
        return tf.reshape(tf.transpose(kernel, [*axes, self.output_axis]), [-1, self.units])

    def plain(self) -> keras.layers.Layer:
        """Keras's layer of the same form."""
        raise NotImplementedError

    def plain_weights(self) -> list[np.ndarray]:
        """What the plain layer has to hold to give the same outputs."""
        kernel = self.normalized_kernel().numpy()
        return [kernel, self.bias.numpy()] if self.use_bias else [kernel]

    def _options(self) -> dict:
        return {"use_bias": self.use_bias, "name": self.name, "dtype": self.dtype_policy}


@register
class NormalizedDense(NormalizedKernel):
    """A Dense layer with a normalised kernel."""

    def build(self, input_shape) -> None:
        """Makes the weights for inputs [N, F]."""
        self.add_weights((input_shape[-1], self.units))

    def call(self, inputs):
        """Maps [N, F] to [N, units]."""
        return with_bias(self, tf.matmul(inputs, self.cast_kernel()))

    def plain(self):
        """Keras's layer of the same form."""
        return keras.layers.Dense(self.units, **self._options())


@register
class NormalizedConv2D(NormalizedKernel):
    """A Conv2D layer, 'same' padding, with a normalised kernel."""

    plain_kind = keras.layers.Conv2D

    def __init__(self, units: int, kernel_size: int, *, strides: int = 1, **options) -> None:
        super().__init__(units, **options)
        self.kernel_size, self.strides = kernel_size, strides

    def get_config(self):
        """Its arguments, for saving."""
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
        }

    def build(self, input_shape) -> None:
        """Makes the weights for inputs [N, H, W, C]."""
        self.add_weights((self.kernel_size, self.kernel_size, input_shape[-1], self.units))

    def compute_output_shape(self, input_shape):
        """[N, ceil(H / strides), ceil(W / strides), units]."""
        batch, height, width, _ = input_shape
        return (batch, -(-height // self.strides), -(-width // self.strides), self.units)

    def call(self, inputs):
        """Convolves [N, H, W, C]."""
        kernel = self.cast_kernel()
        return with_bias(self, conv2d(inputs, kernel, self.strides))

    def plain(self):
        """Keras's layer of the same form."""
        return self.plain_kind(
            self.units, self.kernel_size, self.strides, padding="same", **self._options()
        )


@register
class NormalizedConv2DTranspose(NormalizedConv2D):
    """A Conv2DTranspose layer, 'same' padding, with a normalised kernel."""

    plain_kind = keras.layers.Conv2DTranspose

    def build(self, input_shape) -> None:
        """Makes the weights for inputs [N, H, W, C]."""
        size = self.kernel_size
        self.add_weights((size, size, self.units, input_shape[-1]), output_axis=2)

    def compute_output_shape(self, input_shape):
        """[N, H * strides, W * strides, units]."""
        batch, height, width, _ = input_shape
        return (batch, height * self.strides, width * self.strides, self.units)

    def call(self, inputs):
        """Convolves [N, H, W, C], transposed."""
        kernel = self.cast_kernel()
        return with_bias(self, conv2d_transpose(inputs, kernel, self.strides))
