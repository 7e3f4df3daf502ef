"""Spectral normalization as it was published, for residual discriminators."""

import keras
import tensorflow as tf

from trainer.models.convolutions import register
from trainer.models.kernels import NormalizedConv2D


@register
class SpectralConv2D(NormalizedConv2D):
    """A Conv2D layer, 'same' padding, whose kernel is divided by its largest singular value.

    For the kernel as a matrix W [units, inputs], the value is estimated as |W v|.  A power
    iteration replaces v by W' u / |W' u| with u = W v / |W v| (Miyato et al., arXiv:1802.05957,
    algorithm 1).  `NormalizedConv2D` keeps u instead and estimates |W' u|, which is half an
    iteration ahead.  Both train alike; this one equals the published numbers.
    """

    def add_spectral_vector(self) -> None:
        """Creates `v` [inputs]."""
        self.v = self.add_unit_vector(self.kernel.shape.num_elements() // self.units, "v")

    @property
    def spectral_vector(self) -> keras.Variable:
        """The vector that the power iteration improves."""
        return self.v

    def spectral_matrix(self) -> tuple[tf.Tensor, bool]:
        """Returns the kernel [inputs, units], whose transpose the vector belongs to."""
        return self._matrix(tf.convert_to_tensor(self.kernel)), True
