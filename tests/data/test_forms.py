"""The form of pictures: rectangles, how they fit, gray, RGB and alpha."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from tests.helpers.pictures import load
from trainer import recipes
from trainer.config import Config
from trainer.data import decoding, sources
from trainer.data.form import Form, on_background, shape_arrays, visible
from trainer.errors import DataError, UsageError


@pytest.fixture
def said(place, caplog):
    """Loads the pictures as `train` does, and returns them with what is logged."""

    def load_and_adapt(**given):
        caplog.clear()
        config = recipes.resolve(dict(dataset=str(place), batch_size=1, **given))
        data = sources.load(config)
        with caplog.at_level(logging.INFO, "trainer"):
            sources.adapt(config, data, given)
        return data, caplog.text

    return load_and_adapt


def striped(width, height, mode="RGB"):
    """A picture whose left third is red, whose middle is green and whose right is blue."""
    picture = Image.new(mode, (width, height), "blue")
    picture.paste("lime", (width // 3, 0, 2 * width // 3, height))
    picture.paste("red", (0, 0, width // 3, height))
    return picture


def test_an_image_size_is_a_number_or_height_x_width():
    for given, expected in (
        ("96x64", (96, 64)),
        ("64X64", (64, 64)),
        (32, (32, 32)),
        ("0", (0, 0)),
    ):
        config = recipes.resolve(dict(image_size=given))
        assert config.image_sides == expected
        assert Config.from_json(config.to_json(), "config.json") == config
    assert recipes.resolve(dict(image_size="64x64")).image_size == 64  # as runs have it stored
    for wrong in ("64x", "64x64x3", "-8", "64.0", "x", "0x64", "2000x8"):
        with pytest.raises(UsageError, match="--image_size="):
            recipes.resolve(dict(image_size=wrong))


@pytest.mark.parametrize(
    ("fit", "middle", "left", "corner"),
    [
        ("crop", (0, 255, 0), (0, 255, 0), (0, 255, 0)),
        ("pad", (0, 255, 0), (255, 0, 0), (0, 0, 0)),
        ("stretch", (0, 255, 0), (255, 0, 0), (255, 0, 0)),
    ],
)
def test_how_a_wide_picture_fits_into_a_tall_image(said, place, fit, middle, left, corner):
    striped(90, 30).save(place / "a.png")
    data, log = said(image_size="24x12", fit=fit)
    (image,) = data.images
    assert image.shape == (24, 12, 3)
    np.testing.assert_allclose(image[12, 6], middle, atol=9)
    np.testing.assert_allclose(image[12, 0], left, atol=9)
    np.testing.assert_allclose(image[0, 0], corner, atol=9)
    assert "Image size 24x12 px (height x width), set by --image_size" in log
    how = {"crop": "cropped to", "pad": "get borders to", "stretch": "stretched to"}[fit]
    assert f"{how} this shape" in log


@pytest.mark.parametrize("orientation", [1, 6])
def test_rotated_pictures_have_the_size_that_people_see(said, place, orientation):
    picture = striped(128, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(place / "a.jpg", exif=exif, quality=95)
    data, log = said(image_size="16x8" if orientation == 6 else "8x16")
    assert ("128x64 px" if orientation == 6 else "64x128 px") in log
    ends = data.images[0][[0, -1], 4] if orientation == 6 else data.images[0][4, [0, -1]]
    np.testing.assert_allclose(ends, [(255, 0, 0), (0, 0, 255)], atol=30)


def test_headers_are_read_without_decoding_the_pixels(place):
    names = ["a.png", "b.jpg", "c.bmp", "e.webp", "f.tif"]
    for name in names:
        striped(64, 48).save(place / name)
        with open(place / name, "rb") as file:
            data = file.read()
        start = len(data) // 2
        (place / name).write_bytes(data[:start] + bytes(len(data) - start))
        with open(place / name, "rb") as file:
            try:
                header = decoding.read_header(file)
            except decoding.ImageFileError:
                assert name == "f.tif"  # whose header is at its end
                continue
        assert (header.width, header.height) == (64, 48)


def test_runs_of_earlier_versions_keep_the_form_of_their_pictures():
    config = json.loads(recipes.resolve({}).to_json())
    for name in ("fit", "channels", "uneven_sides", "class_balance"):
        del config[name]
    old = Config.from_json(json.dumps(config), "config.json")
    assert (old.fit, old.channels, old.uneven_sides) == ("crop", "opaque", "keep")
    assert old.class_balance == "none"


def sprite(color=(200, 100, 0, 255)):
    """A disc between transparent pixels with a hidden colour."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[...] = (255, 0, 255, 0)
    rows, cols = np.indices((16, 16))
    pixels[(rows - 8) ** 2 + (cols - 8) ** 2 < 30] = color
    return Image.fromarray(pixels)


def test_transparent_pictures_have_four_channels_without_hidden_colours(said, place):
    sprite().save(place / "a.png")
    sprite((200, 100, 0, 128)).save(place / "b.png")
    data, log = said()
    assert data.images.shape == (2, 16, 16, 4)
    assert "2 of 2 pictures have an alpha channel, so the images have 4 channels" in log
    assert (data.images[:, 0, 0] == 0).all()  # the hidden colour does not count
    np.testing.assert_array_equal(data.images[0, 8, 8], (200, 100, 0, 255))
    np.testing.assert_allclose(data.images[1, 8, 8], (100, 50, 0, 128), atol=1)
    np.testing.assert_allclose(visible(data.images)[1, 8, 8], (200, 100, 0, 128), atol=1)
    white, black = (on_background(data.images, level) for level in (255, 0))
    assert (white[:, 0, 0] == 255).all()
    assert (black[:, 0, 0] == 0).all()
    np.testing.assert_allclose(white[1, 8, 8], (227, 177, 127), atol=1)
    # As runs of earlier versions.
    assert tuple(load(place, channels="opaque").images[0, 0, 0]) == (255, 255, 255)


def test_padding_of_transparent_pictures_is_transparent(place):
    sprite().crop((0, 4, 16, 12)).save(place / "a.png")
    (image,) = load(place, image_size=16).images  # --fit=auto
    assert (image[:3] == 0).all()
    assert image[8, 8, 3] == 255
    assert (image[..., :3] <= image[..., 3:]).all()


def test_opaque_alpha_channels_and_few_transparent_pictures_are_no_reason(said, place):
    Image.new("RGBA", (8, 8), (9, 9, 9, 255)).save(place / "a.png")
    data, log = said()
    assert data.images.shape[-1] == 3
    assert "but none of the 1 that were examined has transparent pixels" in log
    for name in "bcd":
        Image.new("RGB", (8, 8)).save(place / f"{name}.png")
    Image.new("RGBA", (8, 8)).save(place / "a.png")
    data, log = said()
    assert data.images.shape[-1] == 3
    assert "1 of 4 pictures have an alpha channel. Transparent pixels become white" in log
    assert load(place, channels="4").images.shape[-1] == 4


@pytest.mark.parametrize(
    ("channels", "expected"),
    [("1", (76,)), ("3", (255, 0, 0)), ("4", (255, 0, 0, 255)), ("auto", (255, 0, 0))],
)
def test_channels_of_folders_arrays_and_named_sets(place, tmp_path, channels, expected):
    Image.new("RGB", (8, 8), "red").save(place / "a.png")
    assert tuple(load(place, channels=channels).images[0, 4, 4]) == expected
    red = np.zeros((2, 8, 8, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    np.savez(tmp_path / "x.npz", x=red)
    assert tuple(load(tmp_path / "x.npz", channels=channels).images[0, 4, 4]) == expected
    if channels != "auto":
        digits = load("digits", channels=channels, image_size="24x12")
        assert digits.images.shape[1:] == (24, 12, len(expected))


def test_arrays_with_alpha_are_premultiplied(tmp_path):
    x = np.stack([np.asarray(sprite())] * 2)
    np.savez(tmp_path / "x.npz", x=x)
    images = load(tmp_path / "x.npz").images
    assert images.shape == (2, 16, 16, 4)
    assert (images[:, 0, 0] == 0).all()
    np.testing.assert_array_equal(images[0, 8, 8], (200, 100, 0, 255))


def test_alpha_is_divided_out_again():
    every = np.stack(np.meshgrid(np.arange(256), np.arange(1, 256)), -1).astype(np.uint8)
    straight = np.concatenate([every[..., :1]] * 3 + [every[..., 1:]], -1)[None]
    back = visible(shape_arrays(straight, Form(255, 256, 4, "stretch")))
    error = np.abs(back.astype(int) - straight).max(-1)
    assert (error <= 128 / every[..., 1] + 1).all()  # half a level of the premultiplied value


@pytest.mark.parametrize("channels", ["1", "3", "4"])
def test_unusual_modes_are_converted(place, channels):
    for name, mode in (("a.tif", "LAB"), ("b.tif", "CMYK"), ("c.jpg", "YCbCr"), ("d.tif", "1")):
        Image.new(mode, (8, 8)).save(place / name)
    assert load(place, channels=channels).images.shape == (4, 8, 8, int(channels))


def test_channels_may_be_given_as_a_number():
    assert recipes.resolve(dict(channels=4)).channels == "4"
    with pytest.raises(UsageError, match="--channels="):
        recipes.resolve(dict(channels="2"))


def test_animated_pictures_are_named(said, place):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(place / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(place / "b.png")
    assert "1 of 2 pictures have several frames, of which only the first is used" in said()[1]


def test_pictures_with_other_numbers_are_named(place):
    Image.fromarray(np.ones((8, 8), np.float32)).save(place / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif cannot be read \(it has 32 bits per sample"):
        load(place)


def test_small_pictures_are_counted_by_how_they_fit(place, caplog):
    Image.new("L", (8, 40)).save(place / "a.png")
    load(place, image_size="40x16")
    assert "1 of 1 images are smaller than 40x16 px (height x width)" in caplog.text
    caplog.clear()
    load(place, image_size="40x16", fit="pad")
    assert "smaller" not in caplog.text
