"""Networks of rectangles, and of sides that are not powers of two."""

import dataclasses

import keras
import pytest
import tensorflow as tf

from trainer import recipes
from trainer.config import image_size
from trainer.config.dataset import ImageShape
from trainer.errors import UsageError
from trainer.recipes.networks import build_networks

CONVOLUTIONAL = [name for name, recipe in recipes.RECIPES.items() if not recipe.fully_connected]


def build(recipe, *sides, channels=1, **given):
    given = dict(recipe=recipe, g_width=0.02, d_width=0.02, latent_dim=4, **given)
    return build_networks(recipes.resolve(given), ImageShape(*sides, channels, 3))


@pytest.mark.parametrize("sides", [(8, 8), (9, 30), (48, 32), (20, 100)])
@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_every_recipe_makes_and_judges_rectangles(recipe, sides):
    generator, discriminator = build(recipe, *sides, channels=4, conditional=False)
    images = generator(tf.zeros([2, 4]))
    assert images.shape == (2, *sides, 4)
    assert discriminator(images).shape == (2,)


@pytest.mark.parametrize("conditioning", ["projection", "multiply", "concat"])
def test_labels_enter_uneven_rectangles(conditioning):
    generator, discriminator = build("dcgan", 9, 14, conditional=True, d_conditioning=conditioning)
    labels = tf.constant([0, 2])
    assert discriminator([generator([tf.zeros([2, 4]), labels]), labels]).shape == (2,)


@pytest.mark.parametrize("recipe", CONVOLUTIONAL)
def test_the_largest_sides(recipe):
    generator, discriminator = build(recipe, 1024, 1020, conditional=False)
    assert generator.output_shape == (None, 1024, 1020, 1)
    assert discriminator.input_shape == (None, 1024, 1020, 1)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((8, 8), (8, 8)),
        ((9, 9), (10, 10)),
        ((28, 28), (28, 28)),
        ((36, 36), (40, 40)),  # 5 x 8
        ((50, 50), (56, 56)),  # 7 x 8
        ((60, 60), (64, 64)),  # 4 x 16
        ((100, 100), (112, 112)),  # 7 x 16
        ((218, 178), (224, 192)),  # 7 x 32 and 6 x 32
        ((96, 64), (96, 64)),
        ((128, 64), (128, 64)),
        ((100, 32), (104, 32)),  # both are halved three times
        ((1024, 1024), (1024, 1024)),
    ],
)
def test_sides_of_networks_with_stages(sides, expected):
    assert image_size.with_stages(*sides) == expected
    assert image_size.with_stages(*sides[::-1]) == expected[::-1]


def test_every_side_is_4_to_7_times_a_power_of_two():
    for side in range(8, 1025):
        height, width = image_size.with_stages(side, side)
        assert height == width >= side
        while height >= 8:
            assert height % 2 == 0
            height //= 2
        smaller = (g << k for k in range(1, 9) for g in (4, 5, 6, 7))
        assert not any(side <= other < width for other in smaller)


def test_the_images_are_the_middle_of_what_the_networks_make():
    generator, discriminator = build("dcgan", 9, 29, conditional=False)
    crop = generator.get_layer("crop")
    assert crop.input.shape == (None, 10, 30, 1)
    assert crop.cropping == ((0, 1), (0, 1))
    assert discriminator.get_layer("pad").padding == crop.cropping
    assert all(type(layer) is not keras.Model for layer in discriminator.layers)


def test_runs_of_earlier_versions_keep_their_networks():
    """36 pixels were 9 pixels that are doubled twice."""
    old = build("dcgan", 36, 36, conditional=False, uneven_sides="keep")[0]
    assert [layer.output.shape[1] for layer in old.layers if "reshape" in layer.name] == [9]
    new = build("dcgan", 36, 36, conditional=False)[0]
    assert [layer.output.shape[1] for layer in new.layers if "reshape" in layer.name] == [5]
    assert new.output_shape == old.output_shape


def test_recipes_may_support_some_sizes_only():
    recipe = dataclasses.replace(recipes.RECIPES["dcgan"], image_sizes=(32,))
    config = recipes.resolve({})
    assert recipe.network_sides(config, (32, 32), "mine") == (32, 32)
    for sides in ((64, 64), (32, 64)):
        with pytest.raises(UsageError, match="the networks of mine make 32 pixels only"):
            recipe.network_sides(config, sides, "mine")


def test_networks_that_only_know_a_side_refuse_rectangles():
    with pytest.raises(UsageError, match="--image_size=16x8: these networks make squares only"):
        _ = ImageShape(16, 8, 1, 3).size
