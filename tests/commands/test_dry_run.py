"""`train --dry_run` fails as training would, whose checks precede the reading of the data."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from trainer import recipes
from trainer.config.dataset import DatasetDescription
from trainer.errors import ExitCode
from trainer.run_dir.directory import RunDir

CHECKPOINT, DATA, USAGE = ExitCode.CHECKPOINT, ExitCode.DATA, ExitCode.USAGE


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
        ("--dataset=pisc", DATA, "--dataset=pisc does not exist."),
        ("--dataset=pisc/", DATA, "--dataset=pisc/ does not exist."),
        ("--dataset=mnits", DATA, "--dataset=mnits does not exist. Did you mean mnist?"),
        ("--dataset=mnist --data_dir=nowhere", USAGE, "--data_dir=nowhere is not a folder."),
        ("--dataset=empty", DATA, "--dataset=empty contains no images"),
        ("--dataset=texts", DATA, "--dataset=texts contains no images"),
        ("--dataset=picture.png", DATA, "is neither a folder of pictures nor a .zip, .npz,"),
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


IN_RUN = "--run_dir=run"


@pytest.fixture
def stored_run(tmp_path):
    """Makes the files of a run of 40 steps, as far as a start reads them before the data."""
    run_dir = RunDir(tmp_path / "run")
    run_dir.checkpoints.mkdir(parents=True)
    config = recipes.resolve({"run_dir": "run", "dataset": "mnist", "batch_size": 8})
    run_dir.config.write_text(config.to_json())
    described = DatasetDescription(1000, 28, 1, 10, tuple("0123456789"), "0" * 64)
    run_dir.dataset.write_text(described.to_json())
    for suffix in ("index", "json"):
        (run_dir.checkpoints / f"ckpt-40.{suffix}").write_text("{}")


@pytest.mark.usefixtures("stored_run")
@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ("--image_size=64x1025", USAGE, "a side must be 1024 or less"),
        ("--image_size=4", USAGE, "--image_size=4: the sides of images must be at least 8"),
        ("--image_size=9x", USAGE, "is not a number of pixels, or two as HEIGHTxWIDTH"),
        ("--devices=tpu", USAGE, "--devices='tpu' is not valid."),
        ("--devices=cpu:3 --batch_size=16", USAGE, "--batch_size=16 cannot be divided among 3"),
        ("--init_from=runs/mistpyed", USAGE, "--init_from=runs/mistpyed is not a run directory"),
        ("--run_dir=run/config.json/x", USAGE, "config.json/x cannot be written (Not a directory)"),
        (f"{IN_RUN} --batch_size=16", CHECKPOINT, "other settings (batch_size: 8 -> 16)."),
        (f"{IN_RUN} --dataset=cifar10", CHECKPOINT, "other settings (dataset: mnist -> cifar10)."),
        (f"{IN_RUN} --steps=39", USAGE, "--steps=39 is 39 steps, but run has already trained 40"),
        (f"{IN_RUN} --epochs=0.1", USAGE, "--epochs=0.1 is 13 steps, but run has already trained"),
    ],
)
def test_what_needs_no_data_is_checked_before_they_are_read(trainer, flags, code, message):
    # The data do not exist, which reading them would report.
    dataset = [] if IN_RUN in flags else ["--dataset=./pisc"]
    first = trainer("train", "--dry_run", *dataset, *flags.split())
    assert (first.returncode, first.stdout) == (code, "")
    assert message in first.stderr
    assert first.stderr.count("\n") == 1
    trained = trainer("train", *dataset, *flags.split())
    assert (trained.returncode, trained.stderr) == (code, first.stderr)


@pytest.mark.usefixtures("stored_run")
def test_an_existing_run_with_the_same_settings_is_accepted(trainer):
    for flags in (
        "--steps=40",
        "--batch_size=8",
        "--batch_size=16 --fresh",
        "--precision=bfloat16",
    ):
        answer = trainer("train", "--dry_run", IN_RUN, *flags.split())
        assert answer.returncode == ExitCode.OK, answer.stderr


def test_fresh_is_refused_in_a_job(trainer):
    answer = trainer("train", "--dry_run", "--fresh", JOB_COMPLETION_INDEX="0")
    assert answer.returncode == USAGE
    assert answer.stderr.startswith("error: --fresh is refused where JOB_COMPLETION_INDEX is set")
