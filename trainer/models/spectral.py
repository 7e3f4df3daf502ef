"""Spectral normalization as it was published, for residual discriminators."""

from typing import Any

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

    For the kernel as a matrix W [units, inputs], the value is estimated as |W v|.  `iterate`
    replaces v by W' u / |W' u| with u = W v / |W v| (Miyato et al., arXiv:1802.05957,
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

    def iterate(self) -> None:
        """Runs one power iteration for `v`; call it once before each update of the network."""
        matrix = self._matrix(tf.convert_to_tensor(self.kernel))
        u = tf.math.l2_normalize(tf.linalg.matvec(matrix, self.v, transpose_a=True))
        self.v.assign(tf.math.l2_normalize(tf.linalg.matvec(matrix, u)))

    def normalized_kernel(self) -> tf.Tensor:
        """Returns the normalized kernel in float32, in the kernel's shape."""
        kernel = tf.convert_to_tensor(self.kernel)
        # The singular value u' W v with u = W v / |W v|; its gradient is u v'.
        return kernel / tf.norm(tf.linalg.matvec(self._matrix(kernel), self.v, transpose_a=True))
