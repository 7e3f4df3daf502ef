"""Networks: shapes, numbers of weights, layers and initial values of the recipes."""

import functools
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import recipes
from trainer.config.dataset import ImageShape
from trainer.errors import UsageError
from trainer.models import convolutions, kernels, norms
from trainer.models.resize_convolution import ResizeConv2D, spread
from trainer.models.spectral_norms import SpectralNorms
from trainer.recipes.networks import build_networks

GRAY, COLOUR = ImageShape.square(28, 1, 10), ImageShape.square(32, 3, 10)


def build(recipe, shape, **given):
    return build_networks(recipes.resolve(dict(recipe=recipe, **given)), shape)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_every_recipe_builds_networks_for_grayscale_and_colour_images(recipe, conditional):
    for shape in (GRAY, COLOUR, ImageShape.square(32, 1, 10)):
        generator, discriminator = build(
            recipe, shape, conditional=conditional, g_width=0.05, d_width=0.05
        )
        latents = tf.zeros([2, generator.inputs[0].shape[1]])
        labels = [tf.constant([0, 9])] if conditional else []
        images = generator([latents, *labels] if labels else latents)
        assert images.shape == (2, *shape.sides, shape.channels)
        assert discriminator([images, *labels] if labels else images).shape == (2,)


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_initial_values_depend_only_on_the_seed(recipe):
    def initial_values(python_seed, **given):
        # Any thread may change Python's random state, which Keras uses for default seeds.
        random.seed(python_seed)
        given = dict(conditional=True, g_width=0.05, d_width=0.05, **given)
        networks = build(recipe, ImageShape.square(32, 1, 10), **given)
        return [v.numpy() for network in networks for v in network.trainable_variables]

    first = initial_values(0)
    for one, other in zip(first, initial_values(1), strict=True):
        np.testing.assert_array_equal(one, other)
    drawn = [k for k, value in enumerate(first) if np.unique(value).size > 2]
    for k, value in enumerate(initial_values(0, seed=1)):
        assert (k in drawn) == (not np.array_equal(first[k], value))
    assert len({first[k].ravel()[:2].tobytes() for k in drawn}) == len(drawn)


# Numbers of weights of the generator and the discriminator on MNIST (dcgan-studiogan: CIFAR-10),
# counted by hand from the published layers. Batch norm has four vectors.
@pytest.mark.parametrize(
    ("recipe", "shape", "g_count", "d_count"),
    [
        (
            "dcgan-sigmoid",
            GRAY,
            101 * 6272
            + 4 * (128 + 128 + 64 + 32)
            + 25 * (128 * 128 + 128 * 64 + 64 * 32 + 32)
            + 128
            + 64
            + 32
            + 1,
            25 * (32 + 32 * 64 + 64 * 128 + 128 * 256) + 480 + 4 * 4 * 256 + 1,
        ),
        (
            "mlp",
            GRAY,
            101 * 256 + 257 * 512 + 513 * 1024 + 4 * 1536 + 1025 * 784,
            785 * 1024 + 1025 * 512 + 513 * 256 + 257,
        ),
        (
            "mlp-small",
            GRAY,
            101 * 256 + 257 * 512 + 513 * 1024 + 4 * 1792 + 1025 * 784,
            785 * 512 + 513 * 256 + 257,
        ),
        (
            "dcgan-kstep",
            GRAY,
            151 * 12544 + 9 * (256 * 256 + 256 * 128 + 128) + 256 + 128 + 1,
            9 * (256 + 256 * 128) + 384 + (49 * 128 + 1) * 64 + 65,
        ),
        (
            "cgan",
            GRAY,
            1000 + 101 * 12544 + 9 * (256 * 128 + 128 * 64 + 64) + 192 + 1 + 4 * 192,
            7840 + 9 * (32 + 32 * 64 + 64 * 128) + 224 + 4 * 192 + 2048 + 1,
        ),
        (
            "dcgan-studiogan",
            COLOUR,
            129 * 8192 + 16 * (512 * 256 + 256 * 128 + 128 * 64) + 448 + 4 * 448 + 9 * 64 * 3 + 3,
            9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512)
            + 16 * (64**2 + 128**2 + 256**2)
            + 5 * (2 * 448 + 512)
            + 513,
        ),
    ],
)
def test_networks_have_the_published_sizes(recipe, shape, g_count, d_count):
    generator, discriminator = build(recipe, shape)
    assert generator.count_params() == g_count
    assert discriminator.count_params() == d_count


def test_dcgan_sigmoid_activates_the_image_before_the_first_convolution():
    _, discriminator = build("dcgan-sigmoid", GRAY)
    kinds = [type(layer) for layer in discriminator.layers]
    assert kinds[1:3] == [keras.layers.LeakyReLU, convolutions.Conv2D]
    generator, _ = build("dcgan-sigmoid", GRAY)
    kinds = [type(layer).__name__ for layer in generator.layers]
    assert kinds[3:6] == ["BatchNorm", "ReLU", "Conv2DTranspose"]


@pytest.mark.parametrize("size", [28, 32, 48, 64, 100, 128])
def test_dcgan_adapts_to_the_image_size(size):
    generator, discriminator = build(
        "dcgan", ImageShape.square(size, 3, 4), g_width=0.03, d_width=0.03
    )
    assert generator.output_shape == (None, size, size, 3)
    assert discriminator.layers[-1].output.shape == (None,)


def test_dcgan_costs_at_most_0_7_gflop_per_image_at_28_pixels():
    def count_multiplications(network):
        """Returns the number of multiplications in a forward pass of one image."""
        total = 0
        for layer in network.layers:
            if hasattr(layer, "kernel"):
                kernel = layer.kernel
                if isinstance(layer, ResizeConv2D):
                    kernel = spread(tf.convert_to_tensor(kernel))
                size = int(np.prod(kernel.shape))
                transposed = isinstance(layer, keras.layers.Conv2DTranspose)
                pixels = (layer.input if transposed else layer.output).shape[1:-1]
                total += size * int(np.prod(pixels))
        return total

    generator, discriminator = map(count_multiplications, build("dcgan", GRAY))
    assert generator > 5e6  # the convolutions are counted
    # G runs forward twice and backward (two products) once; D forward on three batches
    # and backward on two for its weights and images, on one for its images.
    assert 2 * (4 * generator + 8 * discriminator) < 0.7e9


def test_unsupported_image_sizes_are_usage_errors():
    with pytest.raises(UsageError, match="--image_size=4"):
        build("dcgan", ImageShape.square(4, 1, 10))
    with pytest.raises(UsageError, match="--image_size=16x7"):
        build("dcgan", ImageShape(16, 7, 1, 10))
    with pytest.raises(UsageError, match=r"--image_size=30: .* multiple of 4"):
        build("dcgan", ImageShape.square(30, 1, 10), uneven_sides="keep")


def test_conditional_batch_norm_needs_batch_norm():
    with pytest.raises(UsageError, match="the generator of dcgan-kstep has no batch norm"):
        build("dcgan-kstep", GRAY, conditional=True, g_conditioning="batchnorm")


@pytest.mark.parametrize("conditioning", ["concat", "multiply", "batchnorm"])
def test_labels_change_the_generated_images(conditioning):
    generator, _ = build("dcgan", GRAY, g_conditioning=conditioning, g_width=0.1)
    for variable in generator.trainable_variables:
        variable.assign_add(0.1 * tf.random.stateless_normal(variable.shape, [1, 2]))
    latents = tf.random.stateless_normal([1, 100], [0, 0])
    one, two = (generator([latents, tf.constant([label])]) for label in (1, 2))
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize("conditioning", ["projection", "multiply", "concat"])
def test_labels_change_the_logits(conditioning):
    _, discriminator = build("dcgan", GRAY, d_conditioning=conditioning, initializer="glorot")
    images = tf.random.stateless_normal([1, 28, 28, 1], [0, 0])
    one, two = (discriminator([images, tf.constant([label])]) for label in (1, 2))
    assert abs(one - two) > 1e-5


def test_spectrally_normalized_kernel_has_spectral_norm_one():
    layer = kernels.NormalizedConv2D(6, 3, norm="spectral")
    images = tf.random.stateless_normal([1, 5, 5, 4], [0, 0])
    layer(images)
    for _ in range(100):
        SpectralNorms([layer]).iterate()
    kernel = layer.normalized_kernel().numpy()
    assert np.linalg.norm(kernel.reshape(-1, 6), 2) == pytest.approx(1.0, rel=1e-3)
    before = layer.u.numpy()
    layer(images, training=True)
    np.testing.assert_array_equal(layer.u, before)  # changes once per update, not per call


def gradients(function, values, parameters):
    """Returns the outputs, their first gradients and a second gradient.

    The first gradients are those with respect to `values` and `parameters`; the second is that of
    a gradient penalty with respect to the first parameter.
    """
    with tf.GradientTape() as outer:
        outer.watch([values, *parameters])
        with tf.GradientTape() as inner:
            inner.watch([values, *parameters])
            outputs = function(values)
            loss = tf.reduce_mean(tf.cast(outputs, tf.float32) ** 3)
        first = inner.gradient(loss, [values, *parameters])
        penalty = tf.reduce_sum(tf.square(first[0]))
    return [outputs, *first, outer.gradient(penalty, parameters[0])]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["Conv2D", "Conv2DTranspose"])
def test_convolutions_equal_those_of_keras(kind, size):
    own_layer, keras_layer = (
        getattr(package, kind)(3 if kind == "Conv2DTranspose" else 5, size, 2, padding="same")
        for package in (convolutions, keras.layers)
    )
    values = tf.random.stateless_normal([2, 8, 8, 5 if kind == "Conv2DTranspose" else 3], [0, 0])
    for layer in (own_layer, keras_layer):
        layer.build(values.shape)
    own_layer.bias.assign(tf.range(own_layer.filters, dtype=tf.float32))
    keras_layer.set_weights(own_layer.get_weights())
    results = [gradients(layer, values, [layer.kernel.value]) for layer in (own_layer, keras_layer)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_batch_norm_equals_that_of_keras(precision):
    own_layer, keras_layer = (
        kind(momentum=0.9, dtype=precision)
        for kind in (norms.BatchNorm, keras.layers.BatchNormalization)
    )
    values = 3.0 + 2.0 * tf.random.stateless_normal([4, 5, 5, 3], [0, 0])
    values = tf.cast(values, own_layer.compute_dtype)
    for layer in (own_layer, keras_layer):
        layer.build(values.shape)
        layer.gamma.assign([1.0, 2.0, 3.0])
        layer.beta.assign([0.0, 1.0, 0.0])
    results = [
        gradients(
            functools.partial(layer, training=True), values, [layer.gamma.value, layer.beta.value]
        )
        for layer in (own_layer, keras_layer)
    ]
    tolerance = 1e-4 if precision == "float32" else 0.05
    for one, other in zip(*results, strict=True):
        one, other = (tf.cast(value, tf.float32).numpy() for value in (one, other))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())
    for one, other in zip(own_layer.variables, keras_layer.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    keras_layer.set_weights(own_layer.get_weights())
    np.testing.assert_array_equal(own_layer(values), keras_layer(values))  # in inference mode
