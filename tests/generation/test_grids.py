"""The layout of grids: a row per class, and black tiles where images are missing."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers.runs import steps
from trainer.data.images import ImageSet
from trainer.errors import UsageError
from trainer.evaluation import pictures
from trainer.generation import generate
from trainer.generation.generate import arrange
from trainer.generation.labels import class_numbers
from trainer.generation.sampler import GRID_ROWS, SampleSheet


def tiles(picture: Image.Image, side: int = 4) -> np.ndarray:
    """Returns the value of each tile of a picture of uniform tiles, [rows, columns]."""
    return np.asarray(picture)[::side, ::side]


def uniform(*values: int) -> np.ndarray:
    """Returns an image of one gray value for each of `values`."""
    return np.full((len(values), 4, 4, 1), 0, np.uint8) + np.reshape(
        np.array(values, np.uint8), [-1, 1, 1, 1]
    )


def image_set(**classes: int) -> ImageSet:
    """Returns as many images of each class as its name is given; class k has the value k + 1."""
    labels = np.repeat(np.arange(len(classes)), list(classes.values())).astype(np.int32)
    return ImageSet(uniform(*(labels + 1)), labels, tuple(classes))


def test_generated_classes_are_rows():
    drawn = uniform(10, 20, 30, 11, 21, 31, 12)  # the classes cycle
    np.testing.assert_array_equal(
        tiles(arrange(drawn, [0, 1, 2])), [[10, 11, 12], [20, 21, 0], [30, 31, 0]]
    )


@pytest.mark.parametrize("classes", [None, [7], [0, 1, 2, 3], list(range(GRID_ROWS + 1))])
def test_other_pictures_are_square(classes):
    count = 4 if classes != list(range(GRID_ROWS + 1)) else GRID_ROWS + 21
    side = 2 if count == 4 else 11
    assert tiles(arrange(uniform(*range(1, count + 1)), classes)).shape == (side, side)


def test_generate_draws_a_row_per_class_as_training_does(tiny, run, trainer, tmp_path):
    config = tiny(recipe="cgan", length=steps(1))
    run(config)
    draw = ["generate", f"--run_dir={config.run_dir}", "--devices=cpu", "--num=30"]
    assert trainer(*draw, "--out=grid.png").returncode == 0
    assert trainer(*draw, "--out=all.npz").returncode == 0
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (10 * 28, 3 * 28)
    arrays = np.load(tmp_path / "all.npz")
    for label in range(10):
        row = np.concatenate(list(arrays["images"][arrays["labels"] == label, :, :, 0]), axis=1)
        np.testing.assert_array_equal(picture[28 * label : 28 * (label + 1)], row)


def test_a_small_class_leaves_black_tiles_with_a_warning(tiny, caplog, tmp_path):
    sheet = SampleSheet(tiny(conditional=True, sample_grid=3), 3)
    data = image_set(cat=3, dog=2, owl=1)
    np.testing.assert_array_equal(tiles(sheet.reals(data)), [[1, 1, 1], [2, 2, 0], [3, 0, 0]])
    sheet.warn_of_missing_reals(data, tmp_path / "reals.png")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"Classes with fewer images than the 3 columns of {tmp_path}/reals.png (--sample_grid): "
        "dog has 2, owl has 1. The rest of their rows is black."
    )


def test_many_small_classes_are_counted(tiny, caplog, tmp_path):
    classes = {f"c{k}": 1 for k in range(8)}
    sheet = SampleSheet(tiny(conditional=True, sample_grid=2), 8)
    sheet.warn_of_missing_reals(image_set(**classes), tmp_path / "reals.png")
    assert ": c0 has 1, c1 has 1, c2 has 1, c3 has 1, c4 has 1, 3 more." in caplog.text


def test_few_unlabelled_images_leave_black_tiles_with_a_warning(tiny, caplog, tmp_path):
    sheet = SampleSheet(tiny(conditional=False, sample_grid=2), 0)
    data = ImageSet(uniform(1, 2, 3), np.zeros(3, np.int32), ())
    np.testing.assert_array_equal(tiles(sheet.reals(data)), [[1, 2], [3, 0]])
    sheet.warn_of_missing_reals(data, tmp_path / "reals.png")
    assert "The data set has 3 images, fewer than the 4 tiles of" in caplog.text


def test_enough_images_cause_no_warning(tiny, caplog, tmp_path):
    for conditional, data in ((True, image_set(cat=2, dog=2)), (False, image_set(cat=2, dog=2))):
        sheet = SampleSheet(tiny(conditional=conditional, sample_grid=2), 2)
        sheet.warn_of_missing_reals(data, tmp_path / "reals.png")
    assert not caplog.records


def test_the_warning_is_given_once_for_a_run(tiny, run, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8)
    np.savez(tmp_path / "few.npz", x=images, y=np.array([0] * 8 + [1]))
    config = tiny(
        recipe="mlp", dataset=str(tmp_path / "few.npz"), conditional=True, length=steps(1)
    )
    assert run(config).count("(--sample_grid): 1 has 1. The rest of their rows is black.") == 1
    assert "black" not in run(config.replace(length=steps(2)))


def test_files_are_named_after_classes(tmp_path):
    names = ("cat", "Ünïcode/../dog", "3", "...", "a" * 99)
    labels = np.array([0, 1, 2, 3, 4], np.int32)
    images = np.zeros((5, 4, 4, 1), np.uint8)
    generate.write_images(tmp_path / "out", images, labels, [0, 1, 2, 3, 4], names)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0-cat.png", "1-Ünïcode_.._dog.png", "2-class2.png", "3-....png", f"4-{'a' * 40}.png",
    ]  # fmt: skip


def test_the_title_of_a_small_confusion_matrix_is_complete():
    def ink(classes):
        picture = pictures.confusion(np.eye(classes, dtype=np.int64), ["x"] * classes)
        return (np.asarray(picture.convert("L"))[:22] < 128).sum()

    assert ink(2) == ink(20)


def test_labels_that_are_no_class_are_explained_by_names():
    names = ("cat", "dog")
    assert class_numbers(["dog", 0], names, "--labels") == [1, 0]
    with pytest.raises(UsageError) as error:
        class_numbers("dgo", names, "--label")
    assert str(error.value) == (
        "--label='dgo' is not a class of this run. Did you mean dog? Its classes are cat (0), "
        "dog (1)."
    )
    many = tuple(f"kind {k}" for k in range(100))
    with pytest.raises(UsageError, match=r"kind 19 \(19\), 80 more\.$"):
        class_numbers("100", many, "--label")
