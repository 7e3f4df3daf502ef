"""Filtered resampling, grouped convolutions and the published power iteration."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import recipes
from trainer.config.dataset import ImageShape
from trainer.models import convolutions, grouped_convolution
from trainer.models.filtering import Downsample, Upsample
from trainer.models.grouped_convolution import GroupedConv2D, one_by_one
from trainer.models.kernels import NormalizedConv2DTranspose
from trainer.models.plain import plain
from trainer.models.resize_convolution import NormalizedResizeConv2D, ResizeConv2D
from trainer.models.spectral import SpectralConv2D
from trainer.models.spectral_norms import SpectralNorms
from trainer.recipes.networks import build_networks

FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def images(*shape):
    return tf.random.stateless_normal(shape, [1, 2])


def doubled(image, outside):
    """Doubles the sides of an image [H, W] by the definition of the transposed convolution."""
    around = np.pad(image, 1, mode="edge" if outside == "edge" else "constant")
    height, width = around.shape
    result = np.zeros([2 * height + 2, 2 * width + 2])
    for row in range(height):
        for column in range(width):
            result[2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += (
                4 * FILTER * around[row, column]
            )
    return result[3:-3, 3:-3]


@pytest.mark.parametrize("outside", ["edge", "zeros"])
def test_upsampling_is_the_filter_also_in_exports(outside):
    layer, values = Upsample(outside), images(2, 5, 3, 2)
    expected = [[doubled(i[..., c], outside) for c in range(2)] for i in values.numpy()]
    expected = np.transpose(expected, (0, 2, 3, 1))
    loaded = Upsample.from_config(layer.get_config())
    for actual in (
        layer(values, training=True),
        layer(values, training=False),
        layer.plain()(values),
        loaded(values),
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    np.testing.assert_array_equal(layer(values), layer.plain()(values))  # the exported bytes


def test_downsampling_is_the_filter_and_the_transpose_of_upsampling():
    values = images(1, 6, 4, 2).numpy()
    padded = np.pad(values, [[0, 0], [1, 1], [1, 1], [0, 0]])
    expected = np.zeros([1, 3, 2, 2])
    for row in range(3):
        for column in range(2):
            window = padded[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            expected[:, row, column] = np.tensordot(window, FILTER, [[1, 2], [0, 1]])
    np.testing.assert_allclose(Downsample()(values), expected, atol=1e-6)
    few = images(1, 3, 2, 2)
    up = tf.reduce_sum(Upsample("zeros")(few, training=True) * values)
    down = tf.reduce_sum(few * Downsample()(values))
    assert float(up) == pytest.approx(4 * float(down), rel=1e-5)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_penalty_has_gradients_through_groups_and_downsampling(monkeypatch, precision, native):
    # Without oneDNN, TensorFlow's operation has no gradients on a CPU.
    if not native:
        monkeypatch.setattr(grouped_convolution, "_has_gradients", lambda dtype: False)
    groups = GroupedConv2D(8, 3, padding="same", groups=4, dtype=precision)
    down = Downsample(dtype=precision)
    values = images(2, 4, 4, 8)

    def penalty(layer):
        with tf.GradientTape() as tape:
            tape.watch(layer.kernel.value)
            with tf.GradientTape() as inner:
                inner.watch(values)
                outputs = down(tf.nn.silu(layer(values, training=True)))
                total = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 2)
            squares = tf.reduce_sum(inner.gradient(total, values) ** 2)
        return tape.gradient(squares, layer.kernel.value).numpy()

    class Dense(keras.layers.Conv2D):
        def call(self, inputs, training=None):
            return super().call(inputs)

    dense = Dense(8, 3, padding="same", dtype=precision)
    groups(values), dense(values)
    whole = np.zeros([3, 3, 8, 8], np.float32)
    parts = [slice(2 * group, 2 * group + 2) for group in range(4)]
    for part in parts:
        whole[:, :, part, part] = groups.kernel.numpy()[..., part]
    dense.kernel.assign(whole)
    expected = penalty(dense)
    expected = np.concatenate([expected[:, :, part, part] for part in parts], -1)
    tolerance = 1e-4 if precision == "float32" else 0.05
    np.testing.assert_allclose(penalty(groups), expected, atol=tolerance * np.abs(expected).max())


def test_grouped_convolution_one_by_one_equals_the_operation():
    values, kernel = images(2, 5, 3, 12), images(3, 3, 4, 6)
    expected = tf.nn.conv2d(values, kernel, 1, "SAME")
    np.testing.assert_allclose(one_by_one(values, kernel), expected, atol=1e-4)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_resize_convolution_equals_resizing_and_a_convolution(size):
    layer, values = ResizeConv2D(3, size), images(2, 4, 6, 5)
    outputs = layer(values)
    layer.bias.assign([1.0, 2.0, 3.0])
    kernel = layer.kernel.numpy()[::-1, ::-1].transpose(0, 1, 3, 2)
    resized = keras.layers.UpSampling2D(2)(values)
    around = [(size - 1) // 2, (size - 2) // 2]
    pads = [[0, 0], around, around, [0, 0]]
    expected = tf.nn.conv2d(tf.pad(resized, pads), kernel, 1, "VALID") + layer.bias
    np.testing.assert_allclose(layer(values), expected, atol=1e-5)
    keras_layer = layer.plain()
    keras_layer.build(values.shape)
    keras_layer.set_weights(layer.plain_weights())
    np.testing.assert_allclose(keras_layer(values), layer(values), atol=1e-5)
    loaded = ResizeConv2D.from_config(layer.get_config())
    assert loaded(values).shape == outputs.shape == (2, 8, 12, 3)


def test_resize_convolution_maps_a_uniform_image_to_a_uniform_one():
    uniform = tf.ones([1, 8, 8, 4])
    inside = ResizeConv2D(2, 4)(uniform)[:, 3:-3, 3:-3]
    assert np.ptp(inside, axis=(1, 2)).max() < 1e-6
    transposed = keras.layers.Conv2DTranspose(2, 4, 2, "same")(uniform)[:, 3:-3, 3:-3]
    assert np.ptp(transposed, axis=(1, 2)).max() > 1e-2  # the checkerboard


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("plain", ResizeConv2D),
        ("spectral", NormalizedResizeConv2D),
        ("weight", NormalizedResizeConv2D),
    ],
)
def test_resizing_replaces_the_transposed_convolutions_of_dcgan(norm, kind):
    config = recipes.resolve(dict(recipe="dcgan", g_width=0.1, g_weights=norm))
    generator, _ = build_networks(config, ImageShape.square(32, 3, 10))
    kinds = [type(layer) for layer in generator.layers]
    assert kinds.count(kind) == 3
    assert not {convolutions.Conv2DTranspose, NormalizedConv2DTranspose} & set(kinds)
    given = [images(2, 100), tf.constant([0, 9])]
    np.testing.assert_allclose(plain(generator)(given), generator(given), atol=1e-5)


def test_normalized_resize_convolution_equals_the_other_one_with_its_kernel():
    layer, values = NormalizedResizeConv2D(3, 4, norm="weight", strides=2), images(2, 4, 6, 5)
    layer(values)
    layer.length.assign([1.0, 2.0, 3.0])
    other = ResizeConv2D(3, 4)
    other(values)
    other.set_weights([layer.normalized_kernel(), layer.bias])
    np.testing.assert_array_equal(layer(values), other(values))


def test_published_power_iteration_finds_the_largest_singular_value():
    layer = SpectralConv2D(6, 3, norm="spectral")
    layer(images(1, 5, 5, 4))
    kernel = layer.kernel.numpy().reshape(-1, 6)
    before = layer.v.numpy()
    # Algorithm 1 of arXiv:1802.05957 with W = kernel'.
    u = kernel.T @ before
    v = kernel @ (u / np.linalg.norm(u))
    SpectralNorms([layer]).iterate()
    np.testing.assert_allclose(layer.v, v / np.linalg.norm(v), atol=1e-6)
    for _ in range(200):
        SpectralNorms([layer]).iterate()
    largest = np.linalg.norm(kernel, 2)
    np.testing.assert_allclose(layer.normalized_kernel(), layer.kernel / largest, rtol=1e-3)
    keras_layer = layer.plain()
    keras_layer.build([None, 5, 5, 4])
    keras_layer.set_weights(layer.plain_weights())
    np.testing.assert_allclose(
        keras_layer(images(1, 5, 5, 4)), layer(images(1, 5, 5, 4)), atol=1e-6
    )
