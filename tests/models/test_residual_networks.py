"""The networks of `sngan` and `r3gan`: sizes, blocks, initial values and number formats."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import recipes
from trainer.config.dataset import ImageShape
from trainer.errors import UsageError
from trainer.models import grouped
from trainer.models.plain import plain
from trainer.models.spectral import SpectralConv2D
from trainer.recipes.builtin import r3gan, sngan
from trainer.recipes.networks import build_networks

IMAGENET = dict(g_width=2.0, d_width=2.0)


def build(recipe, side, channels=3, classes=0, **given):
    config = recipes.resolve(dict(recipe=recipe, conditional=bool(classes), **given))
    return build_networks(config, ImageShape.square(side, channels, classes))


def count(network):
    """Returns the number of trainable parameters, as publications count them."""
    return sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)


# The counts of ImageNet are tested by `stages` alone, whose networks take half a gigabyte.
@pytest.mark.parametrize(
    ("recipe", "side", "classes", "counts"),
    [
        ("sngan", 32, 0, (4_276_739, 1_053_825)),
        ("sngan", 32, 10, (4_304_387, 1_055_105)),
        ("sngan", 32, 100, (4_580_867, 1_066_625)),
        ("r3gan", 32, 0, (20_732_160, 20_683_776)),
        ("r3gan", 32, 10, (20_781_952, 21_280_512)),
        ("r3gan", 64, 0, (22_429_824, 22_381_440)),
        ("r3gan", 256, 0, (23_057_952, 23_009_568)),
    ],
)
def test_networks_have_the_published_number_of_parameters(recipe, side, classes, counts):
    assert tuple(map(count, build(recipe, side, classes=classes))) == counts


@pytest.mark.parametrize(
    ("side", "widest", "counts"),
    [(32, 32, (82_914_304, 86_548_992)), (64, 64, (103_570_432, 107_205_120))],
)
def test_imagenet_networks_have_the_published_number_of_parameters(side, widest, counts):
    given = dict(IMAGENET, hyperparameters=f"group_size=32,widest_side={widest}")
    config = recipes.resolve(dict(recipe="r3gan", **given))
    form = r3gan.stages(config, ImageShape.square(side, 3, 1000), 2.0)
    width, blocks = form.widths[0], form.blocks * len(form.widths)
    assert set(form.widths) == {1536}
    assert 2 * width // form.group_size == 96
    inner = 2 * width
    block = width * inner + inner + 9 * form.group_size * inner + inner + inner * width
    g = 1000 * 64 + 128 * width + 16 * width + blocks * block + 3 * width
    d = 1000 * width + width * width + 16 * width + blocks * block + 3 * width
    assert (g, d) == counts


@pytest.mark.parametrize(
    ("side", "channels", "classes"),
    [(8, 1, 0), (16, 1, 3), (28, 1, 3), (32, 3, 0), (48, 3, 3), (96, 3, 0), (256, 1, 3)],
)
@pytest.mark.parametrize("recipe", ["sngan", "r3gan"])
def test_networks_adapt_to_the_image(recipe, side, channels, classes):
    networks = build(recipe, side, channels, classes, g_width=0.03, d_width=0.03)
    assert networks[0].output_shape == (None, side, side, channels)
    assert networks[1].input_shape[0 if classes else slice(None)] in (
        (None, side, side, channels),
        [(None, side, side, channels)],
    )


@pytest.mark.parametrize(
    ("side", "blocks"),
    [
        (32, [(128, True), (128, True), (128, False), (128, False)]),
        (48, [(64, True), (128, True), (256, True), (512, True), (1024, False)]),
        (64, [(64, True), (128, True), (256, True), (512, True), (1024, True)]),
        (128, [(64, True), (128, True), (256, True), (512, True), (1024, True), (1024, False)]),
    ],
)
def test_sngan_has_the_published_blocks(side, blocks):
    assert sngan.down_blocks(side) == blocks
    generator, _ = build("sngan", side, g_width=0.25, d_width=0.03)
    ups = [layer for layer in generator.layers if layer.name.endswith("_sum")]
    published = {
        32: [256, 256, 256],
        48: [256, 128, 64],
        64: [512, 256, 128, 64],
        128: [1024, 512, 256, 128, 64],
    }
    assert [4 * layer.output.shape[-1] for layer in ups] == published[side]


def test_sngan_has_the_published_initial_values():
    generator, discriminator = build("sngan", 32, classes=10)
    for layer, gain in (
        (generator.get_layer("block0_conv1"), 2**0.5),
        (generator.get_layer("block0_shortcut"), 1.0),
        (generator.get_layer("to_image"), 1.0),
        (discriminator.get_layer("block1_conv2"), 2**0.5),
        (discriminator.get_layer("block1_shortcut"), 1.0),
    ):
        kernel = layer.kernel.numpy()
        height, width, fan_in, fan_out = kernel.shape
        limit = gain * (6 / (height * width * (fan_in + fan_out))) ** 0.5
        assert np.abs(kernel).max() <= limit
        assert np.abs(kernel).max() == pytest.approx(limit, rel=1e-2)
    scale = generator.get_layer("block0_norm1_scale").kernel.numpy()
    assert (scale.mean(), scale.std()) == pytest.approx((1.0, 0.02), abs=2e-3)


def test_sngan_normalizes_every_kernel_of_the_discriminator():
    _, discriminator = build("sngan", 32, g_width=0.03)
    kernels = [layer for layer in discriminator.layers if hasattr(layer, "kernel")]
    assert sum(isinstance(layer, SpectralConv2D) for layer in kernels) == len(kernels) - 1
    assert all(layer.norm == "spectral" for layer in kernels)


@pytest.mark.parametrize(
    ("side", "classes", "expected"),
    [
        (
            32,
            10,
            dict(conv1=0.029754, conv3=0.068714, latents=0.088388, g_label=0.316228,
                 d_label=0.011411, image=0.036084),
        ),
        (64, 0, dict(conv1=0.028140, conv3=0.064986, latents=0.125, image=0.051031)),
    ],
)  # fmt: skip
def test_r3gan_has_the_published_initial_values(side, classes, expected):
    generator, discriminator = build("r3gan", side, classes=classes)
    kernels = dict(
        conv1=generator.get_layer("stage1_block0_conv1"),
        conv3=discriminator.get_layer("stage0_block1_conv3"),
        latents=generator.get_layer("from_latents"),
        image=generator.get_layer("to_image"),
    )
    if classes:
        kernels.update(
            g_label=next(x for x in generator.layers if x.name.startswith("dense")),
            d_label=discriminator.get_layer("label_embedding"),
        )
    for name, stddev in expected.items():
        values = kernels[name].kernel.numpy()
        assert values.std() == pytest.approx(stddev, rel=6 / values.size**0.5), name
    assert discriminator.get_layer("from_image").kernel.numpy().std() == pytest.approx(
        3**-0.5, rel=0.05
    )
    assert discriminator.get_layer("basis").kernel.numpy().std() == pytest.approx(0.25, rel=0.05)
    assert not generator.get_layer("stage1_block0_out").kernel.numpy().any()
    assert not generator.get_layer("stage1_block0_conv1").bias.numpy().any()


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_the_smallest_stage_of_r3gan_computes_in_float32(precision):
    keras.config.set_dtype_policy(precision)
    for network in build("r3gan", 16, classes=3, g_width=0.05, d_width=0.05):
        for layer in network.layers:
            if layer.name.startswith(("stage", "basis", "head", "from_latents")):
                smallest = not layer.name.startswith(("stage1", "stage2"))
                assert (layer.compute_dtype == "float32") == smallest, layer.name
    generator, discriminator = build("r3gan", 16, classes=3, g_width=0.05, d_width=0.05)
    labels = tf.constant([0, 2])
    images = generator([tf.zeros([2, 64]), labels])
    assert images.dtype == discriminator([images, labels]).dtype == tf.float32


def test_r3gan_has_a_linear_output():
    generator, _ = build("r3gan", 16, g_width=0.05, d_width=0.05)
    images = generator(100 * tf.random.stateless_normal([4, 64], [0, 0]))
    assert np.abs(images).max() > 1


def test_r3gan_refuses_settings_that_its_networks_do_not_have():
    for given in (
        dict(d_norm="layer"),
        dict(g_norm="batch"),
        dict(d_weights="spectral"),
        dict(initializer="he"),
        dict(d_activation="relu"),
        dict(d_layer_noise=0.1),
    ):
        ((name, value),) = given.items()
        with pytest.raises(UsageError, match=f"--{name}={value}: the networks of r3gan take only"):
            build("r3gan", 16, **given)


@pytest.mark.parametrize("recipe", ["sngan", "r3gan"])
def test_settings_of_the_networks_take_effect(recipe):
    generator, _ = build(recipe, 16, g_width=0.05, d_width=0.05)
    wider, _ = build(recipe, 16, g_width=0.1, d_width=0.05)
    assert wider.count_params() > generator.count_params()
    if recipe == "sngan":
        for given in (dict(d_layer_noise=0.1), dict(d_norm="layer"), dict(d_weights="weight"),
                      dict(g_weights="spectral"), dict(g_norm="instance")):  # fmt: skip
            changed = build(recipe, 16, g_width=0.05, d_width=0.05, **given)
            kinds = [type(layer) for network in changed for layer in network.layers]
            usual = build(recipe, 16, g_width=0.05, d_width=0.05)
            assert kinds != [type(layer) for network in usual for layer in network.layers], given


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("recipe", ["sngan", "r3gan"])
def test_generators_have_an_equivalent_of_keras_layers(recipe, classes, tmp_path):
    generator, _ = build(recipe, 16, classes=classes, g_width=0.05, d_width=0.05)
    for variable in generator.variables:
        noise = tf.random.stateless_normal(variable.shape, [1, len(variable.shape)])
        variable.assign_add(0.1 * tf.abs(noise))
    plain(generator).save(tmp_path / "g.keras")
    exported = keras.models.load_model(tmp_path / "g.keras")
    modules = {type(layer).__module__.split(".")[0] for layer in exported.layers}
    assert modules == {"keras"}
    inputs = [tf.random.stateless_normal([3, generator.inputs[0].shape[1]], [0, 0])]
    inputs += [tf.constant([0, 1, 2])] if classes else []
    given = inputs if classes else inputs[0]
    expected = generator(given).numpy()
    np.testing.assert_allclose(exported(given), expected, atol=1e-5 * np.abs(expected).max())


def test_stages_scale_initial_values_by_the_number_of_blocks():
    form = grouped.Stages((4, 4), (768,) * 4)
    assert form.gain == pytest.approx((2 / 1.04) ** 0.5 * 8**-0.25)
