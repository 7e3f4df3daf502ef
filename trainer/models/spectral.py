"""Spectral normalization as it was published, for residual discriminators."""

from typing import Any

import keras
import tensorflow as tf

from trainer.models.convolutions import register
from trainer.models.kernels import NormalizedConv2D


def _unit_vector(shape: Any, dtype: Any = None) -> tf.Tensor:
    """Returns the fixed initial vector of the power iteration."""
    start = tf.random.stateless_normal(shape, seed=[0, 0], alg="philox")
    return tf.cast(tf.math.l2_normalize(start), dtype or tf.float32)


@register
class SpectralConv2D(NormalizedConv2D):
    """A Conv2D layer, 'same' padding, whose kernel is divided by its largest singular value.

    For the kernel as a matrix W [units, inputs], the value is estimated as |W v|.  a power
    iteration replaces v by W' u / |W' u| with u = W v / |W v| (Miyato et al., arXiv:1802.05957,
    algorithm 1).  `NormalizedConv2D` keeps u instead and estimates |W' u|, which is half an
    iteration ahead.  Both train alike; this one equals the published numbers.
    """

    def add_weights(self, kernel_shape: tuple[int, ...], output_axis: int = -1) -> None:
        """Creates the kernel, the bias and `v` [inputs]."""
        self.output_axis = output_axis % len(kernel_shape)
        # Always float32: a power iteration in half precision drifts.
        self.kernel = self.add_weight(
            shape=kernel_shape, initializer=self.kernel_initializer, name="kernel", autocast=False
        )
        self.v = self.add_weight(
            shape=[self.kernel_size**2 * kernel_shape[-2]],
            initializer=_unit_vector,
            name="v",
            trainable=False,
            autocast=False,
        )
        if self.use_bias:
            self.bias = self.add_weight(shape=[self.units], initializer="zeros", name="bias")

    @property
    def spectral_vector(self) -> keras.Variable:
        """The vector that the power iteration improves."""
        return self.v

    def spectral_matrix(self) -> tuple[tf.Tensor, bool]:
        """Returns the kernel [inputs, units], whose transpose the vector belongs to."""
        return self._matrix(tf.convert_to_tensor(self.kernel)), True
