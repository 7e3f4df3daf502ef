"""`inspect`: what it says about a set, and its contact sheet."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from trainer import recipes
from trainer.data import contact_sheet, inspection
from trainer.errors import DataError


@pytest.fixture
def pictures(tmp_path):
    """Three cats and two dogs, one copy, one broken file and one file that is no picture."""
    rng = np.random.default_rng(0)
    for name, size, mode in (
        ("cats/1.png", (20, 30), "RGB"),
        ("cats/2.png", (40, 24), "RGB"),
        ("dogs/3.jpg", (32, 32), "RGB"),
        ("dogs/4.png", (16, 17), "L"),
    ):
        path = tmp_path / "pics" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
    shutil.copy(tmp_path / "pics/cats/1.png", tmp_path / "pics/cats/copy.png")
    content = (tmp_path / "pics/cats/2.png").read_bytes()
    (tmp_path / "pics/dogs/broken.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "pics/notes.txt").write_text("x")
    return tmp_path / "pics"


def test_inspect_states_what_a_folder_holds_and_what_training_makes_of_it(trainer, pictures):
    sheet = pictures.parent / "sheet.png"
    arguments = ("inspect", f"--dataset={pictures}", f"--out={sheet}")
    found = json.loads(trainer(*arguments, "--json").stdout)
    assert (found["pictures"], found["other_files"]) == (6, 1)
    assert found["formats"] == {".png": 5, ".jpg": 1}
    assert found["classes"] == {"cats": 3, "dogs": 3}
    assert found["sizes"]["smallest"] == [17, 16]
    assert found["sizes"]["largest"] == [32, 32]
    assert found["gray"] == 1
    assert [name.split(" ")[0] for name in found["broken"]] == ["dogs/broken.png"]
    assert found["duplicates"] == [["cats/1.png", "cats/copy.png"]]
    assert (found["images"], found["shape"], found["bytes"]) == (5, [16, 16, 3], 5 * 16 * 16 * 3)
    assert found["command"].endswith(f"train --dataset={pictures} --skip_bad_images")
    with Image.open(sheet) as drawn:
        assert drawn.size[0] > 900
    text = trainer(*arguments).stdout
    assert "cats/1.png = cats/copy.png" in text
    assert "dogs/broken.png (image file is truncated" in text
    assert "5 of 16 px, colour" in text


def test_the_command_that_inspect_prints_trains(trainer, pictures):
    sheet = pictures.parent / "sheet.png"
    found = json.loads(
        trainer("inspect", f"--dataset={pictures}", f"--out={sheet}", "--json").stdout
    )
    result = trainer(*found["command"].split()[3:], "--dry_run")
    assert result.returncode == 0, result.stderr


def test_inspect_reads_a_sample(trainer, pictures):
    config = recipes.resolve({"dataset": str(pictures), "skip_bad_images": True})
    found = inspection.inspect(config, 2, lambda share, what: None).facts
    assert (found["pictures"], found["read"]) == (6, 2)


def test_inspect_reads_a_prepared_set(trainer, pictures):
    out = pictures.parent / "out"
    trainer("prepare", f"--source={pictures}", f"--out={out}", "--skip_bad_images")
    found = inspection.inspect(recipes.resolve({"dataset": str(out)}), 0, lambda *_: None).facts
    assert (found["images"], found["shape"]) == (5, [16, 16, 3])
    assert found["classes"] == {"cats": 3, "dogs": 2}


def test_inspect_reads_arrays_and_named_sets(tmp_path):
    x = np.zeros((4, 9, 12, 3), np.uint8)
    x[1] = 7
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 1, 0, 1]))
    for dataset, shape, count in (
        (str(tmp_path / "a.npz"), [8, 8, 3], 4),
        ("digits", [28, 28, 1], 1500),
    ):
        found = inspection.inspect(recipes.resolve({"dataset": dataset}), 0, lambda *_: None).facts
        assert (found["shape"], found["images"]) == (shape, count)
    assert inspection.inspect(
        recipes.resolve({"dataset": str(tmp_path / "a.npz")}), 0, lambda *_: None
    ).facts["duplicates"] == [["0", "2", "3"]]


def test_a_sheet_shows_transparent_and_oblong_images():
    rows = contact_sheet.choose(np.array([0, 1, 1]), ("a", "b"))
    assert [row.caption for row in rows] == ["a (1)", "b (2)"]
    half = np.full((8, 20, 4), 128, np.uint8)  # white at half the opacity, premultiplied
    sheet = contact_sheet.draw(rows, lambda n: None if n else half)
    found = np.asarray(sheet)
    assert found[..., 0].min() < 128  # the captions
    assert found[70, 20].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--dataset is missing"),
        ("--dataset=nowhere", "--dataset=nowhere does not exist"),
        ("--dataset=digits --out=x.jpg", "--out=x.jpg must end in .png"),
        ("--dataset=digits --sample=-1", "--sample=-1 must be 0 or more"),
    ],
)
def test_inspect_names_what_is_wrong(trainer, arguments, message):
    result = trainer("inspect", *arguments.split())
    assert result.returncode in (64, 65)
    assert message in result.stderr


def test_inspect_reads_pictures_in_a_bucket(pictures, gcs):
    for path in pictures.rglob("*.*"):
        gcs.put(f"pics/{path.relative_to(pictures).as_posix()}", path.read_bytes())
    config = recipes.resolve({"dataset": "gs://bucket/pics", "skip_bad_images": True})
    found = inspection.inspect(config, 0, lambda *_: None).facts
    assert found["classes"] == {"cats": 3, "dogs": 3}


def test_pictures_of_which_none_can_be_read_are_refused(pictures):
    content = (pictures / "dogs/broken.png").read_bytes()
    for path in [*pictures.rglob("*.png"), *pictures.rglob("*.jpg")]:
        path.write_bytes(content)
    config = recipes.resolve({"dataset": str(pictures), "skip_bad_images": True})
    with pytest.raises(DataError, match="none of 6 pictures can be read, for example cats"):
        inspection.inspect(config, 0, lambda *_: None)
