"""The spectral norms of all layers of a network, computed together.

For each layer by itself they are some 25 operations per update, most of them on vectors, whose
launches would take longer than a step's convolutions on a GPU.
"""

from collections.abc import Callable, Iterable, Sequence

import keras
import tensorflow as tf

from trainer.models.kernels import NormalizedKernel

EPSILON = 1e-12  # of the squared length, as in tf.math.l2_normalize
ALIGNMENT = 16  # floats; TensorFlow shares rows of a matrix that start at 64 bytes


class SpectralNorms:
    """Power iterations and normalized kernels of a network's layers with spectral norm.

    Each layer keeps a vector x for its kernel as a matrix A, and its singular value is |A x|
    (`NormalizedKernel.spectral_matrix`).
    """

    def __init__(self, layers: Iterable[keras.layers.Layer]) -> None:
        self._layers = [
            layer
            for layer in layers
            if isinstance(layer, NormalizedKernel) and layer.norm == "spectral"
        ]

    def iterate(self) -> None:
        """Replaces each x by A'A x / |A'A x|."""
        if not self._layers:
            return
        products = []
        for layer in self._layers:
            matrix, transposed = layer.spectral_matrix()
            vector = tf.convert_to_tensor(layer.spectral_vector)
            product = tf.linalg.matvec(matrix, vector, transpose_a=transposed)
            products.append(tf.linalg.matvec(matrix, product, transpose_a=not transposed))
        rows = _as_rows(products)
        squares = tf.reduce_sum(tf.square(rows), 1, keepdims=True)
        rows *= tf.math.rsqrt(tf.maximum(squares, EPSILON))
        for layer, row, product in zip(self._layers, tf.unstack(rows), products, strict=True):
            layer.spectral_vector.assign(_first(row, product.shape[0]))

    def kernels(self) -> dict[int, tf.Tensor]:
        """Returns the kernels over their singular values, in float32, by the layer's id."""
        if not self._layers:
            return {}
        matrices, transposed = zip(
            *(layer.spectral_matrix() for layer in self._layers), strict=True
        )
        vectors = [tf.convert_to_tensor(layer.spectral_vector) for layer in self._layers]
        normalized = _over_norms(list(matrices), vectors, transposed)
        return {
            id(layer): layer.from_matrix(matrix)
            for layer, matrix in zip(self._layers, normalized, strict=True)
        }


def _over_norms(
    matrices: list[tf.Tensor], vectors: list[tf.Tensor], transposed: Sequence[bool]
) -> list[tf.Tensor]:
    """Returns each matrix over |A x|, where A is the matrix or its transpose.

    The singular value y'A x with y = A x / |A x| has the gradient y x' with respect to A, so the
    gradient of W = A / s is G / s - <G, A> / s^2 * y x', where G is that of the quotient.
    """

    @tf.custom_gradient
    def quotients(*matrices: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        """Returns the quotients and the function of their gradients."""
        products = [
            tf.linalg.matvec(matrix, vector, transpose_a=flip)
            for matrix, vector, flip in zip(matrices, vectors, transposed, strict=True)
        ]
        rows = _as_rows(products)
        inverse = tf.math.rsqrt(tf.reduce_sum(tf.square(rows), 1))
        factors = tf.unstack(inverse)

        def gradients(*upstream: tf.Tensor) -> list[tf.Tensor]:
            """Returns the gradients of the matrices, given those of the quotients."""
            dots = [
                tf.reduce_sum(gradient * matrix)
                for gradient, matrix in zip(upstream, matrices, strict=True)
            ]
            # y / s in each row, times <G, A> / s
            scaled = rows * tf.reshape(tf.stack(dots) * tf.square(inverse), [-1, 1])
            results = []
            for gradient, vector, row, product, flip, factor in zip(
                upstream, vectors, tf.unstack(scaled), products, transposed, factors, strict=True
            ):
                image = _first(row, product.shape[0])
                left, right = (vector, image) if flip else (image, vector)
                outer = left[:, tf.newaxis] * right[tf.newaxis, :]
                results.append(factor * (gradient - outer))
            return results

        return [
            factor * matrix for factor, matrix in zip(factors, matrices, strict=True)
        ], gradients

    return quotients(*matrices)


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
