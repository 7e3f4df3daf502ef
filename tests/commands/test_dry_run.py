"""`train --dry_run` fails as training would where the data set cannot be found."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from trainer.errors import ExitCode

DATA, USAGE = ExitCode.DATA, ExitCode.USAGE


@pytest.fixture
def places(tmp_path):
    """Makes a folder, an archive and an .npz of ten images, and some that are unsuitable."""
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    for name in ("cats", "dogs"):
        (tmp_path / "pics" / name).mkdir(parents=True)
        for number in range(5):
            (tmp_path / "pics" / name / f"{number}.png").write_bytes(picture.read_bytes())
    with zipfile.ZipFile(tmp_path / "pics.zip", "w") as archive:
        for number in range(10):
            archive.write(picture, f"{number}.png")
    np.savez(tmp_path / "pics.npz", x=np.zeros((10, 8, 8), np.uint8))
    np.savez_compressed(tmp_path / "other.npz", z=np.zeros(3))
    (tmp_path / "broken.zip").write_bytes(b"PK and no more")
    (tmp_path / "broken.npz").write_bytes(b"PK and no more")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("dataset", ["pics", "./pics", "pics.zip", "pics.npz", "~/pics"])
def test_data_that_exist_are_accepted(trainer, tmp_path, dataset):
    arguments = ("train", "--dry_run", f"--dataset={dataset}", "--batch_size=10")
    answer = trainer(*arguments, HOME=str(tmp_path))
    assert answer.returncode == ExitCode.OK, answer.stderr
    assert json.loads(answer.stdout)["dataset"] == dataset.replace("~", str(tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ("--dataset=./pisc", DATA, "--dataset=./pisc does not exist."),
        ("--dataset=pisc.zip", DATA, "--dataset=pisc.zip does not exist."),
        ("--dataset=mnits", USAGE, "--dataset='mnits' is not known. Did you mean mnist?"),
        ("--dataset=mnist --data_dir=nowhere", USAGE, "--data_dir=nowhere is not a folder."),
        ("--dataset=empty", DATA, "--dataset=empty contains no images"),
        ("--dataset=texts", DATA, "--dataset=texts contains no images"),
        ("--dataset=picture.png", DATA, "is not a folder, a .zip or an .npz."),
        ("--dataset=broken.zip", DATA, "broken.zip cannot be read"),
        ("--dataset=broken.npz", DATA, "broken.npz cannot be read"),
        ("--dataset=other.npz", DATA, "other.npz contains z."),
        ("--dataset=pics --split=test", DATA, "--dataset=pics has no folder test/"),
        ("--dataset=pics --batch_size=11", DATA, "has 10 images, fewer than --batch_size=11."),
        ("--dataset=pics.npz --batch_size=11", DATA, "has 10 images, fewer than --batch_size=11."),
    ],
)
def test_data_that_training_could_not_load_are_refused(trainer, flags, code, message):
    first = trainer("train", "--dry_run", "--batch_size=2", *flags.split())
    assert first.returncode == code
    assert first.stdout == ""
    assert message in first.stderr
    assert first.stderr.count("\n") == 1
    trained = trainer("train", "--batch_size=2", *flags.split())
    assert (trained.returncode, trained.stderr) == (code, first.stderr)


def test_no_image_is_decoded(trainer, tmp_path):
    (tmp_path / "pics").mkdir()
    for number in range(2):
        (tmp_path / "pics" / f"{number}.png").write_bytes(b"not decoded")
    answer = trainer("train", "--dry_run", "--dataset=./pics", "--batch_size=2")
    assert answer.returncode == ExitCode.OK


def test_nothing_is_read_from_buckets(trainer):
    answer = trainer("train", "--dry_run", "--dataset=gs://bucket/pics.zip")
    assert answer.returncode == ExitCode.OK
    answer = trainer("train", "--dry_run", "--dataset=mnist", "--data_dir=gs://bucket/sets")
    assert answer.returncode == ExitCode.OK
