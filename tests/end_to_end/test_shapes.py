"""Runs on transparent rectangles with labels from a file, from the pictures to the exports."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import trainer as product
from tests.helpers.inception_graph import small_graph
from trainer.evaluation import inception
from trainer.generation import generate
from trainer.generation.export import SAVED_MODEL

HEIGHT, WIDTH = 18, 11


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path):
    """Red and green discs, whose transparent surroundings have a hidden colour."""
    rows, cols = np.indices((36, 24))
    folder = tmp_path / "pics"
    folder.mkdir()
    lines = ["file,label"]
    for k in range(24):
        pixels = np.zeros((36, 24, 4), np.uint8)
        pixels[...] = (255, 0, 255, 0)
        colour = (200, 0, 0, 255) if k % 2 else (0, 200, 0, 128)
        pixels[(rows - 18) ** 2 + (cols - 8 - k % 8) ** 2 < 50] = colour
        Image.fromarray(pixels).save(folder / f"{k:02}.png")
        lines.append(f"{k:02}.png,{'cat' if k % 2 else 'dog'}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("augment", ["diffaugment", "ada"])
def test_a_run_on_transparent_rectangles(tiny, run, place, tmp_path, augment):
    config = tiny(
        dataset=str(place), image_size=f"{HEIGHT}x{WIDTH}", conditional=True, length="2 steps",
        augment=augment, augment_strength="0.8", augment_policy="color,cutout", devices="cpu:2",
        class_balance="equal",
    )  # fmt: skip
    output = run(config)
    assert f"24 images {HEIGHT}x{WIDTH}x4, 2 classes, conditional" in output
    assert "The networks are built for 18x12 pixels, of which the images are the middle" in output
    assert "Rows of the sample grids, from the top: cat, dog" in output
    described = json.loads((tmp_path / "run/data.json").read_text())
    assert (described["size"], described["channels"]) == (f"{HEIGHT}x{WIDTH}", 4)
    assert described["class_names"] == ["cat", "dog"]
    for path in sorted((tmp_path / "run/samples").glob("*.png")):
        with Image.open(path) as sheet:
            assert (sheet.mode, sheet.size) == ("RGBA", (2 * WIDTH, 2 * HEIGHT))
    with Image.open(tmp_path / "run/samples/reals.png") as reals:
        colours = [reals.getpixel((4, row)) for row in (9, 9 + HEIGHT)]
    # By class, without the hidden colour.
    np.testing.assert_allclose(colours, [(200, 0, 0, 255), (0, 200, 0, 128)], atol=2)
    with Image.open(tmp_path / "run/training.gif") as gif:
        assert gif.size == (2 * WIDTH, 2 * HEIGHT)
    again = run(config.replace(length=type(config.length)(3, "steps")))
    assert "Resuming from" in again


def test_outputs_of_a_run_on_transparent_rectangles(tiny, run, place, tmp_path):
    config = tiny(
        dataset=str(place), image_size=f"{HEIGHT}x{WIDTH}", conditional=True, length="2 steps"
    )
    run(config)
    trained = product.load(tmp_path / "run", devices="cpu")
    images = trained.sample(num=4, labels="cat")
    assert images.shape == (4, HEIGHT, WIDTH, 4)
    options = generate.GenerationOptions(4, trained.classes(None), seed=0)
    generate.generate(trained.run_dir, trained.config, options, tmp_path / "out")
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [
        "0-cat.png", "1-dog.png", "2-cat.png", "3-dog.png"
    ]  # fmt: skip
    with Image.open(tmp_path / "out/0-cat.png") as picture:
        assert (picture.mode, picture.size) == ("RGBA", (WIDTH, HEIGHT))
    trained.export(tmp_path / "exported")  # compares what the formats draw with the run
    served = tf.saved_model.load(str(tmp_path / "exported" / SAVED_MODEL)).signatures
    drawn = served["serving_default"](latents=tf.zeros([1, 100]), labels=tf.constant([0]))["images"]
    assert drawn.shape == (1, HEIGHT, WIDTH, 4)


def test_inception_sees_transparent_images_on_white_and_on_black(tiny, run, place, tmp_path):
    graph = tmp_path / inception.GRAPH
    graph.write_bytes(small_graph())
    config = tiny(dataset=str(place), image_size=f"{HEIGHT}x{WIDTH}", length="1 steps")
    run(config)
    trained = product.load(tmp_path / "run", devices="cpu")
    result = trained.evaluate(num_samples=100, inception_path=str(graph))
    assert result["feature_hash"].endswith("-white")
    names = ("fid", "kid", "fid_on_black", "kid_on_black")
    assert np.isfinite([result[name] for name in names]).all()
    assert abs(result["fid"] - result["fid_on_black"]) > 1e-6
    assert result["image_size"] == f"{HEIGHT}x{WIDTH}"
