"""What is said of a data set's size: the image size, few images, small classes and the batch."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer import recipes
from trainer.data import sources
from trainer.errors import DataError, ExitCode

ROOT = Path(__file__).resolve().parents[2]
LOGGERS = ("trainer.data.advice", "trainer.data.batch_size", "trainer.data.sources")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Makes the folder `pics` of the current folder."""
    (tmp_path / "pics").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pics"


@pytest.fixture
def adapted(caplog):
    """Loads and adapts as `train` does; returns the configuration and the log by level."""

    def load(dataset, *, is_resumed=False, **given):
        config = recipes.resolve(dict(dataset=str(dataset), **given))
        caplog.clear()
        with caplog.at_level(logging.INFO, "trainer"):
            data = sources.load(config.replace(batch_size=1))
            config = sources.adapt(config, data, given, is_resumed=is_resumed)
        records = [record for record in caplog.records if record.name in LOGGERS]
        messages = [(record.levelname, record.getMessage()) for record in records]
        assert all("\n" not in message for _, message in messages)
        return config, messages

    return load


def pictures(folder, count, size=(16, 16)):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.new("L", size, 3 * k % 256).save(folder / f"{k:02}.png")


def the(messages, word):
    """Returns the only message that contains a word, with its level."""
    (found,) = (one for one in messages if word in one[1])
    return found


# The image size.


@pytest.mark.parametrize(
    ("sides", "given", "line"),
    [
        ((40, 52), {}, "Image size 40 px: the smallest picture, a/00.png, is 52x40 px"
         " (height x width); pictures are cropped to their central square (--image_size"
         " sets another size)"),
        ((52, 31), {}, "Image size 28 px: the smallest picture, a/00.png, is 31x52 px"
         " (height x width), and the default is a multiple of 4; pictures are"),
        ((90, 70), {}, "Image size 64 px: the smallest picture, a/00.png, is 70x90 px"
         " (height x width), and the default is at most 64 px; pictures are"),
        ((5, 9), {}, "Image size 8 px: the smallest picture, a/00.png, is 9x5 px"
         " (height x width), and the default is at least 8 px; pictures are"),
        ((40, 52), {"image_size": 32}, "Image size 32 px, set by --image_size: the smallest"
         " picture, a/00.png, is 52x40 px (height x width); pictures are cropped to their"
         " central square"),
    ],
)  # fmt: skip
def test_the_image_size_of_a_folder_is_explained(place, adapted, sides, given, line):
    pictures(place / "a", 1, sides)
    pictures(place / "b", 2, (100, 110))
    for _ in ("decoded", "cached"):
        level, message = the(adapted(place, **given)[1], "Image size")
        assert level == "INFO"
        assert message.startswith(line)


def test_the_image_size_of_arrays_is_explained(place, adapted):
    np.savez(place / "x.npz", x=np.zeros((4, 52, 40), np.uint8))
    _, message = the(adapted(place / "x.npz")[1], "Image size")
    told = "all pictures are 52x40 px (height x width); pictures are cropped to"
    assert message.startswith(f"Image size 40 px: {told}")
    _, message = the(adapted(place / "x.npz", image_size=20)[1], "Image size")
    assert message.startswith(f"Image size 20 px, set by --image_size: {told}")


def test_the_image_size_of_a_named_set_is_explained_if_it_is_changed(adapted):
    expected = "Image size 32 px, set by --image_size: the usual size of --dataset=digits is 28 px"
    assert the(adapted("digits", image_size=32)[1], "Image size") == ("INFO", expected)
    for given in ({}, {"image_size": 28}):
        assert adapted("digits", **given)[1] == []


# Few images.


def test_few_images_are_warned_about(adapted, place):
    x = np.zeros((1000, 8, 8), np.uint8)
    np.savez(place / "enough.npz", x=x)
    assert not any("has only" in message for _, message in adapted(place / "enough.npz")[1])
    np.savez(place / "few.npz", x=x[:999])
    level, message = the(adapted("pics/few.npz")[1], "has only")
    assert level == "WARNING"
    assert message.startswith("--dataset=pics/few.npz --split=train has only 999 images.")
    assert "Add images, set --horizontal_flip" in message
    _, message = the(adapted("pics/few.npz", horizontal_flip=True)[1], "has only")
    assert "Add images, or train for a shorter time" in message


def test_small_classes_are_named_smallest_first(adapted, place):
    counts = [50, 49, 7, 60, 20, 30]
    labels = np.repeat(np.arange(6), counts)
    np.savez(place / "x.npz", x=np.zeros((len(labels), 8, 8), np.uint8), y=labels)
    level, message = the(adapted("pics/x.npz")[1], "classes have fewer")
    assert level == "WARNING"
    assert message.startswith(
        "--dataset=pics/x.npz: 4 of 6 classes have fewer than 50 images: "
        "2 (7), 4 (20), 5 (30), 1 more. "
    )
    assert message.endswith(
        "Add images to these classes, merge or remove them, or set --noconditional"
    )
    unconditional = adapted("pics/x.npz", conditional=False)[1]
    assert not any("classes" in message for _, message in unconditional)
    np.savez(place / "x.npz", x=np.zeros((100, 8, 8), np.uint8), y=np.repeat([0, 1], 50))
    assert not any("classes" in message for _, message in adapted("pics/x.npz")[1])


def test_missing_labels_are_warned_about_with_the_remedy(adapted, place):
    pictures(place, 3)
    config, messages = adapted("pics")
    assert not config.conditional
    assert the(messages, "has no labels") == (
        "WARNING",
        "--dataset=pics has no labels, so the networks are trained without labels "
        "(--noconditional). Sort the images into two or more class folders to draw images of a "
        "requested class",
    )
    np.savez(place / "x.npz", x=np.zeros((4, 8, 8), np.uint8))
    _, message = the(adapted("pics/x.npz")[1], "has no labels")
    assert "Save labels of two or more classes in the .npz to draw" in message


# Fewer images than the batch size.


@pytest.mark.parametrize(("count", "batch"), [(63, 32), (32, 32), (31, 16), (2, 2), (1, 1)])
def test_the_recipe_batch_is_lowered_to_a_power_of_two(adapted, place, count, batch):
    pictures(place, count)
    config, messages = adapted("pics")
    assert config.batch_size == batch
    images = "1 image" if count == 1 else f"{count} images"
    assert the(messages, "batch size")[1] == (
        f"--dataset=pics --split=train has {images}, fewer than the recipe's batch size 64, so the "
        f"batch size is {batch} (--batch_size sets another one)"
    )


def test_a_batch_that_the_images_fill_is_kept(adapted, place):
    pictures(place, 64)
    config, messages = adapted("pics")
    assert config.batch_size == 64
    assert not any("batch size" in message for _, message in messages)
    assert adapted("pics", batch_size=48)[0].batch_size == 48


def test_a_requested_batch_that_is_too_large_is_an_error_with_the_flag(adapted, place):
    pictures(place, 13)
    expected = (
        "--dataset=pics --split=train has 13 images, fewer than --batch_size=14. Use "
        "--batch_size=8, or add images."
    )
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        adapted("pics", batch_size=14)
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        sources.load(recipes.resolve(dict(dataset="pics", batch_size=14)))


def test_the_lowered_batch_is_kept_when_the_run_is_resumed(trainer, place):
    pictures(place, 13)
    flags = ["--dataset=pics", "--recipe=mlp", "--devices=cpu", "--sample_grid=2", "--run_dir=run"]
    config = place.parent / "run" / "config.json"

    answer = trainer("train", *flags, "--steps=2")
    assert answer.returncode == 0, answer.stderr
    assert "so the batch size is 8" in answer.stdout + answer.stderr
    assert json.loads(config.read_text())["batch_size"] == 8

    for k in range(100):  # enough for the recipe's batch
        Image.new("L", (16, 16), k).save(place / f"new{k}.png")
    answer = trainer("train", *flags, "--steps=3", "--accept_changed_data")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(config.read_text())["batch_size"] == 8
    before = config.read_bytes()

    for path in list(place.iterdir())[5:]:
        path.unlink()
    answer = trainer("train", *flags, "--steps=4", "--accept_changed_data")
    assert answer.returncode == ExitCode.DATA
    assert (
        "has 5 images, fewer than the batch size 8 of the run in run, which cannot change. "
        "Restore the images, or start a new run with --fresh --batch_size=4."
    ) in answer.stderr
    assert config.read_bytes() == before

    answer = trainer("train", *flags, "--steps=1", "--fresh")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(config.read_text())["batch_size"] == 4


# The page.


def test_the_page_shows_the_log_of_its_example(adapted, place):
    pictures(place / "cats", 45, (60, 80))
    pictures(place / "dogs", 12, (64, 64))
    Image.new("L", (40, 52)).save(place / "cats" / "07.png")
    page = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```log\n(.*?)^```$", page, re.M | re.S)
    _, messages = adapted("pics")
    shown = [f"{level}: {message}".removeprefix("INFO: ") for level, message in messages]
    assert shown == example.splitlines()


# A run on very few images.


def test_a_run_on_two_images_has_a_grid_of_reals(tiny, run, place):
    pictures(place, 2)
    run(tiny(dataset="pics", batch_size=2, sample_grid=3, length="1 steps"))
    reals = np.asarray(Image.open(place.parent / "run" / "samples" / "reals.png"))
    assert reals.shape == (48, 48)
    assert reals[8::16, 8::16].ravel().tolist() == [0, 3, *[0] * 7]
