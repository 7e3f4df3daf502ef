"""Layers with spectral normalization or weight normalization of the kernel."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.models.convolutions import conv2d, conv2d_transpose, register, with_bias


def _unit_vector(shape: Any, dtype: Any = None) -> tf.Tensor:
    """Returns the fixed initial vector of the power iteration."""
    start = tf.random.stateless_normal(shape, seed=[0, 0], alg="philox")
    return tf.cast(tf.math.l2_normalize(start), dtype or tf.float32)


_prepared = threading.local()  # each replica is traced in its own thread


@contextlib.contextmanager
def use(kernels: Mapping[int, tf.Tensor]) -> Iterator[None]:
    """Makes layers called inside the block use kernels that are normalized already.

    Args:
      kernels: normalized kernels by the id of their layer.
    """
    _prepared.kernels = kernels
    try:
        yield
    finally:
        _prepared.kernels = {}


class NormalizedKernel(keras.layers.Layer):
    """A layer with a normalized kernel and a bias.

    With `norm` "spectral", the kernel is divided by its largest singular value (Miyato et al.,
    arXiv:1802.05957), which power iterations estimate (`SpectralNorms`). The stored vector `u` is
    a function of the weights alone, so it is equal on every replica.

    With `norm` "weight", the part of the kernel of each output is divided by its length and
    multiplied by a learned length (Salimans and Kingma, arXiv:1602.07868).
    """

    def __init__(
        self,
        units: int,
        *,
        norm: str,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.units, self.norm, self.use_bias = units, norm, use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, for saving."""
        return {
            **super().get_config(),
            "units": self.units,
            "norm": self.norm,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }

    def add_weights(self, kernel_shape: tuple[int, ...], output_axis: int = -1) -> None:
        """Creates the kernel, the bias, and `u` [units] or `length` [units]."""
        self.output_axis = output_axis % len(kernel_shape)
        # Always float32: a power iteration in half precision drifts.
        self.kernel = self.add_weight(
            shape=kernel_shape,
            initializer=self.kernel_initializer,
            name="kernel",
            autocast=False,
        )
        if self.norm == "spectral":
            self.add_spectral_vector()
        else:
            self.length = self.add_weight(
                shape=[self.units], initializer="ones", name="length", autocast=False
            )
            self.length.assign(tf.norm(self._matrix(tf.convert_to_tensor(self.kernel)), axis=0))
        if self.use_bias:
            self.bias = self.add_weight(shape=[self.units], initializer="zeros", name="bias")

    def add_spectral_vector(self) -> None:
        """Creates the vector that the power iteration improves, here `u` [units]."""
        self.u = self.add_unit_vector(self.units, "u")

    def add_unit_vector(self, size: int, name: str) -> keras.Variable:
        """Creates a vector of length 1, whose start is the same in every run."""
        return self.add_weight(
            shape=[size], initializer=_unit_vector, name=name, trainable=False, autocast=False
        )

    @property
    def spectral_vector(self) -> keras.Variable:
        """The vector that the power iteration improves."""
        return self.u

    def spectral_matrix(self) -> tuple[tf.Tensor, bool]:
        """Returns the kernel [inputs, units], and whether the vector belongs to its transpose.

        The singular value is the length of this matrix, or of its transpose, times the vector.
        """
        return self._matrix(tf.convert_to_tensor(self.kernel)), False

    def from_matrix(self, matrix: tf.Tensor) -> tf.Tensor:
        """Returns a matrix [inputs, units] in the kernel's shape."""
        shape = list(self.kernel.shape)
        units = shape.pop(self.output_axis)
        order = list(range(len(shape)))
        order.insert(self.output_axis, len(shape))
        matrix = tf.reshape(matrix, [*shape, units])
        return matrix if order == sorted(order) else tf.transpose(matrix, order)

    def normalized_kernel(self) -> tf.Tensor:
        """Returns the normalized kernel in float32, in the kernel's shape."""
        prepared = getattr(_prepared, "kernels", {}).get(id(self))
        if prepared is not None:
            return prepared
        kernel = tf.convert_to_tensor(self.kernel)
        if self.norm == "spectral":
            # The singular value v' A x with v = A x / |A x|; its gradient is v x'.
            matrix, flip = self.spectral_matrix()
            kernel /= tf.norm(tf.linalg.matvec(matrix, self.spectral_vector, transpose_a=flip))
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
        """Returns the normalized kernel in the layer's compute dtype."""
        return tf.cast(self.normalized_kernel(), self.compute_dtype)

    def _matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """Reshapes the kernel to [inputs, units]."""
        axes = [a for a in range(len(kernel.shape)) if a != self.output_axis]
        if self.output_axis < len(axes):
            kernel = tf.transpose(kernel, [*axes, self.output_axis])
        return tf.reshape(kernel, [-1, self.units])

    def plain(self) -> keras.layers.Layer:
        """Returns the equivalent Keras layer."""
        raise NotImplementedError

    def plain_weights(self) -> list[np.ndarray]:
        """Returns the weights with which the plain layer gives the same outputs."""
        kernel = self.normalized_kernel().numpy()
        return [kernel, self.bias.numpy()] if self.use_bias else [kernel]

    def _options(self) -> dict:
        return {"use_bias": self.use_bias, "name": self.name, "dtype": self.dtype_policy}


@register
class NormalizedDense(NormalizedKernel):
    """A Dense layer with a normalized kernel."""

    def build(self, input_shape: tuple) -> None:
        """Creates the weights for inputs [N, F]."""
        self.add_weights((input_shape[-1], self.units))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps [N, F] to [N, units]."""
        return with_bias(self, tf.matmul(inputs, self.cast_kernel()))

    def plain(self) -> keras.layers.Layer:
        """Returns the equivalent Keras layer."""
        return keras.layers.Dense(self.units, **self._options())


@register
class NormalizedConv2D(NormalizedKernel):
    """A Conv2D layer, 'same' padding, with a normalized kernel."""

    plain_kind = keras.layers.Conv2D

    def __init__(self, units: int, kernel_size: int, *, strides: int = 1, **options: Any) -> None:
        super().__init__(units, **options)
        self.kernel_size, self.strides = kernel_size, strides

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, for saving."""
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
        }

    def build(self, input_shape: tuple) -> None:
        """Creates the weights for inputs [N, H, W, C]."""
        self.add_weights((self.kernel_size, self.kernel_size, input_shape[-1], self.units))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns [N, ceil(H / strides), ceil(W / strides), units]."""
        batch, height, width, _ = input_shape
        return (batch, -(-height // self.strides), -(-width // self.strides), self.units)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Convolves [N, H, W, C]."""
        kernel = self.cast_kernel()
        return with_bias(self, conv2d(inputs, kernel, self.strides))

    def plain(self) -> keras.layers.Layer:
        """Returns the equivalent Keras layer."""
        return self.plain_kind(
            self.units, self.kernel_size, self.strides, padding="same", **self._options()
        )


@register
class NormalizedConv2DTranspose(NormalizedConv2D):
    """A Conv2DTranspose layer, 'same' padding, with a normalized kernel."""

    plain_kind = keras.layers.Conv2DTranspose

    def build(self, input_shape: tuple) -> None:
        """Creates the weights for inputs [N, H, W, C]."""
        size = self.kernel_size
        self.add_weights((size, size, self.units, input_shape[-1]), output_axis=2)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns [N, H * strides, W * strides, units]."""
        batch, height, width, _ = input_shape
        return (batch, height * self.strides, width * self.strides, self.units)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Applies the transposed convolution to [N, H, W, C]."""
        kernel = self.cast_kernel()
        return with_bias(self, conv2d_transpose(inputs, kernel, self.strides))
