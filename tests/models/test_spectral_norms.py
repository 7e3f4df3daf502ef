"""Compares spectral norms that are computed together with those of each layer by itself."""

import keras
import numpy as np
import tensorflow as tf

from trainer.models import kernels
from trainer.models.spectral import SpectralConv2D
from trainer.models.spectral_norms import SpectralNorms
from trainer.training.buffer import Buffer


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
    others = [keras.Variable(tf.ones([n])) for n in (3, 40)]  # weights that are not normalized
    buffer = Buffer.create([others[0], *(layer.kernel for layer in made), others[1]], "weights")
    buffer.load()
    together = SpectralNorms(made, buffer.places()).normalize([buffer.value()])
    factors = [tf.random.stateless_normal(v.shape, [1, k]) for k, v in enumerate(buffer.variables)]
    with tf.GradientTape() as tape:
        alone = [tf.convert_to_tensor(others[0])]
        alone += [layer.normalized_kernel() for layer in made]
        alone.append(tf.convert_to_tensor(others[1]))
        loss = tf.add_n([tf.reduce_sum(f * w) for f, w in zip(factors, alone, strict=True)])
    for one, other in zip(buffer.parts(*together.weights), alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    expected = tape.gradient(loss, [v.value for v in buffer.variables])
    found = buffer.parts(*together.weight_gradient([buffer.join(factors)]))
    for one, other in zip(found, expected, strict=True):
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
    weights = tf.ones([16])
    assert norms.normalize(weights).weights is weights
