"""Compares spectral norms that are computed together with those of each layer by itself."""

import numpy as np
import tensorflow as tf

from trainer.models import kernels
from trainer.models.spectral import SpectralConv2D
from trainer.models.spectral_norms import SpectralNorms


def layers():
    """Returns one layer of each class, whose vectors belong to other sides and sizes."""
    made = [
        kernels.NormalizedConv2D(6, 3, norm="spectral"),
        kernels.NormalizedConv2DTranspose(5, 4, norm="spectral", strides=2),
        SpectralConv2D(7, 3, norm="spectral"),
    ]
    for layer in made:
        layer(tf.zeros([1, 8, 8, 4]))
    dense = kernels.NormalizedDense(1, norm="spectral")
    dense(tf.zeros([1, 9]))
    return [*made, dense]


def test_kernels_and_gradients_equal_those_of_each_layer():
    made = layers()
    parameters = [layer.kernel.value for layer in made]
    factors = [tf.random.stateless_normal(p.shape, [1, k]) for k, p in enumerate(parameters)]
    with tf.GradientTape(persistent=True) as tape:
        together = SpectralNorms(made).kernels()
        alone = {id(layer): layer.normalized_kernel() for layer in made}
        losses = [
            tf.add_n(
                [
                    tf.reduce_sum(factor * found[id(layer)])
                    for layer, factor in zip(made, factors, strict=True)
                ]
            )
            for found in (together, alone)
        ]
    for layer in made:
        np.testing.assert_allclose(together[id(layer)], alone[id(layer)], rtol=1e-5)
    for one, other in zip(*(tape.gradient(loss, parameters) for loss in losses), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_power_iterations_equal_those_of_each_layer():
    made = layers()
    expected = []
    for layer in made:
        matrix, transposed = layer.spectral_matrix()
        matrix = matrix.numpy().T if transposed else matrix.numpy()
        vector = matrix.T @ (matrix @ layer.spectral_vector.numpy())
        expected.append(vector / np.linalg.norm(vector))
    SpectralNorms(made).iterate()
    for layer, vector in zip(made, expected, strict=True):
        np.testing.assert_allclose(layer.spectral_vector, vector, rtol=1e-5, atol=1e-6)


def test_networks_without_spectral_norm_need_nothing():
    norms = SpectralNorms([kernels.NormalizedDense(3, norm="weight")])
    norms.iterate()
    assert norms.kernels() == {}
