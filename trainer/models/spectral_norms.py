"""The spectral norms of all layers of a network, computed together.

For each layer by itself they are some 25 operations per update, most of them on vectors, whose
launches would take longer than a step's convolutions on a GPU.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.models.kernels import NormalizedKernel

EPSILON = 1e-12  # of the squared length, as in tf.math.l2_normalize
ALIGNMENT = 16  # floats; TensorFlow shares rows of a matrix that start at 64 bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Normalized:
    """The weights of a network with each kernel over its singular value.

    Attributes:
      weights: [size] float32 for each buffer of the weights.
      weight_gradient: returns the gradients of the weights, given those of the normalized ones, in
        the same form.
    """

    weights: Sequence[tf.Tensor]
    weight_gradient: Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]]


class SpectralNorms:
    """Power iterations and normalized kernels of a network's layers with spectral norm.

    Each layer keeps a vector x for its kernel as a matrix A, and its singular value is |A x|
    (`NormalizedKernel.spectral_matrix`).

    Attributes:
      layers: the layers whose kernels `normalize` divides; the others, which are not trained, do so
        when they are called.
    """

    def __init__(
        self,
        layers: Iterable[keras.layers.Layer],
        places: Mapping[int, tuple[int, int]] | None = None,
    ) -> None:
        """Finds the layers with spectral norm.

        Args:
          layers: all layers of the network.
          places: where each trained variable begins and ends in the buffer of all weights, by the
            variable's id, in order; multiples of ALIGNMENT.  Zeros follow shorter variables.
        """
        self._places = places or {}
        self._all = _with_spectral_norm(layers)
        trained = {id(layer.kernel): layer for layer in self._all}
        self.layers = [trained[key] for key in self._places if key in trained]

    def iterate(self) -> None:
        """Replaces each x by A'A x / |A'A x|."""
        # A vector of one element is 1 or -1 and stays so.
        layers = [layer for layer in self._all if layer.spectral_vector.shape != (1,)]
        if not layers:
            return
        products = []
        for layer in layers:
            matrix, transposed = layer.spectral_matrix()
            vector = tf.convert_to_tensor(layer.spectral_vector)
            product = tf.linalg.matvec(matrix, vector, transpose_a=transposed)
            products.append(tf.linalg.matvec(matrix, product, transpose_a=not transposed))
        rows = _as_rows(products)
        squares = tf.reduce_sum(tf.square(rows), 1, keepdims=True)
        rows *= tf.math.rsqrt(tf.maximum(squares, EPSILON))
        for layer, row, product in zip(layers, tf.unstack(rows), products, strict=True):
            layer.spectral_vector.assign(_first(row, product.shape[0]))

    def normalize(self, buffers: Sequence[tf.Tensor]) -> Normalized:
        """Divides each kernel by its singular value.

        The singular value s = y'A x with y = A x / |A x| has the gradient y x' with respect to A,
        so the gradient of W = A / s is G / s - <G, A> / s^2 * y x', where G is that of W.

        Args:
          buffers: the buffers of all weights, each [size] float32, whose values are those of the
            variables.  There is a single one if a trained layer has a spectral norm.
        """
        if not self.layers:
            return Normalized(buffers, lambda gradients: gradients)
        (weights,) = buffers
        matrices = [layer.spectral_matrix() for layer in self.layers]
        vectors = [tf.convert_to_tensor(layer.spectral_vector) for layer in self.layers]
        products = [
            tf.linalg.matvec(matrix, vector, transpose_a=transposed)
            for (matrix, transposed), vector in zip(matrices, vectors, strict=True)
        ]
        rows = _as_rows(products)
        squares = tf.reduce_sum(tf.square(rows), 1)
        numbers = self._numbers(weights.shape[0])
        factors = tf.gather(tf.concat([[1.0], tf.math.rsqrt(squares)], 0), tf.constant(numbers))

        def weight_gradient(gradients: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
            """Returns the gradient of the weights, given that of the normalized ones."""
            (gradient,) = gradients
            sums = tf.reduce_sum(tf.reshape(weights * gradient, [-1, ALIGNMENT]), 1)
            # <G, A> of each layer; what belongs to none has a negative number and is left out.
            dots = tf.math.unsorted_segment_sum(sums, tf.constant(numbers - 1), len(self.layers))
            # <G, A> / s * y in each row
            scaled = tf.unstack(rows * tf.reshape(dots / squares, [-1, 1]))
            outers = []
            for layer, vector, row, product, (_, transposed) in zip(
                self.layers, vectors, scaled, products, matrices, strict=True
            ):
                image = _first(row, product.shape[0])
                left, right = (vector, image) if transposed else (image, vector)
                outers.append(layer.from_matrix(left[:, tf.newaxis] * right[tf.newaxis, :]))
            return [_times_blocks(gradient - self._joined(outers, weights.shape[0]), factors)]

        return Normalized([_times_blocks(weights, factors)], weight_gradient)

    def _numbers(self, size: int) -> np.ndarray:
        """Returns for each ALIGNMENT weights the number of their layer, from 1, or 0."""
        numbers = np.zeros(size // ALIGNMENT, np.int64)  # GPUs keep int32 in host memory
        for number, layer in enumerate(self.layers, 1):
            begin, end = self._places[id(layer.kernel)]
            numbers[begin // ALIGNMENT : end // ALIGNMENT] = number
        return numbers

    def _joined(self, kernels: Sequence[tf.Tensor], size: int) -> tf.Tensor:
        """Returns a buffer that contains kernels and is zero elsewhere."""
        pieces, filled = [], 0
        for layer, kernel in zip(self.layers, kernels, strict=True):
            begin, _ = self._places[id(layer.kernel)]
            if begin > filled:
                pieces.append(tf.zeros([begin - filled]))
            pieces.append(tf.reshape(kernel, [-1]))
            filled = begin + layer.kernel.shape.num_elements()
        if size > filled:
            pieces.append(tf.zeros([size - filled]))
        return tf.concat(pieces, 0)


def has_spectral_norms(layers: Iterable[keras.layers.Layer]) -> bool:
    """Returns whether some of a network's layers have a spectral norm."""
    return bool(_with_spectral_norm(layers))


def _with_spectral_norm(layers: Iterable[keras.layers.Layer]) -> list[Any]:
    return [
        layer
        for layer in layers
        if isinstance(layer, NormalizedKernel) and layer.norm == "spectral"
    ]


def _times_blocks(flat: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Returns a buffer, each ALIGNMENT elements of which are multiplied by a factor."""
    blocks = tf.reshape(flat, [-1, ALIGNMENT]) * factors[:, tf.newaxis]
    return tf.reshape(blocks, flat.shape)


def _as_rows(vectors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns vectors as the rows of a matrix, padded with zeros."""
    width = max(vector.shape[0] for vector in vectors)
    width = -(-width // ALIGNMENT) * ALIGNMENT
    pieces = []
    for vector in vectors:
        pieces.append(vector)
        if vector.shape[0] < width:
            pieces.append(tf.zeros([width - vector.shape[0]]))
    return tf.reshape(tf.concat(pieces, 0), [len(vectors), width])


def _first(vector: tf.Tensor, count: int) -> tf.Tensor:
    return vector if vector.shape[0] == count else vector[:count]
