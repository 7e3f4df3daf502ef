"""`train --dry_run` fails as training would, and training fails before it reads the data."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from trainer import recipes
from trainer.config.dataset import DatasetDescription
from trainer.errors import ExitCode
from trainer.run_dir.checkpoint_files import write_manifest
from trainer.run_dir.directory import RunDir

DATA, USAGE, CHECKPOINT = ExitCode.DATA, ExitCode.USAGE, ExitCode.CHECKPOINT


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
        (
            "--dataset=pisc",
            DATA,
            "--dataset=pisc does not exist. Set --dataset to a folder",
        ),
        ("--dataset=pisc/", DATA, "or to a named data set: cifar10, digits, fashion_mnist, mnist."),
        ("--dataset=", USAGE, "--dataset='' is not known."),
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


@pytest.fixture
def stored(tmp_path):
    """Makes the run directory of a run of 100 steps on pictures that cannot be decoded."""
    (tmp_path / "pics").mkdir()
    for number in range(9):
        (tmp_path / "pics" / f"{number}.png").write_bytes(b"not decoded")
    config = recipes.resolve(
        dict(recipe="mlp", dataset="./pics", run_dir="run", batch_size=8, image_size=8)
    )
    run_dir = RunDir(tmp_path / "run")
    run_dir.checkpoints.mkdir(parents=True)
    run_dir.config.write_text(config.to_json())
    run_dir.dataset.write_text(DatasetDescription(9, 8, 3, 0, (), "0").to_json())
    for suffix in ("index", "data-00000-of-00001"):
        (run_dir.checkpoints / f"ckpt-100.{suffix}").write_bytes(b"x")
    write_manifest(run_dir.checkpoints / "ckpt-100", 100)
    return run_dir


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ("--run_dir=new --image_size=50", USAGE, "--image_size=50: the image size must be a"),
        (
            "--run_dir=new --recipe=dcgan-studiogan --image_size=64",
            USAGE,
            "--image_size=64: the networks of dcgan-studiogan make 32 pixels only. Use",
        ),
        ("--run_dir=new --devices=cpu:3 --batch_size=8", USAGE, "divided among 3 devices"),
        ("--run_dir=new --devices=cpx", USAGE, "--devices='cpx' is not valid"),
        ("--run_dir=new --init_from=rnu", USAGE, "--init_from=rnu is not a run directory"),
        ("--run_dir=run --batch_size=4", CHECKPOINT, "other settings (batch_size: 8 -> 4)"),
        ("--run_dir=run --recipe=cgan", CHECKPOINT, "recipe: mlp -> cgan"),
        ("--run_dir=run --steps=99", USAGE, "run has already trained 100 steps (0.8 kimg)"),
        ("--run_dir=run --epochs=80", USAGE, "--epochs=80 is 90 steps, but run has already"),
    ],
)
def test_what_needs_no_data_is_checked_before_they_are_read(trainer, stored, flags, code, message):
    arguments = ("--dataset=./pics", *flags.split())
    for first in ([], ["--dry_run"]):
        answer = trainer("train", *first, *arguments)
        assert (answer.returncode, answer.stdout) == (code, "")
        assert message in answer.stderr
        assert answer.stderr.count("\n") == 1
    assert not (stored.path.parent / "new").exists()


def test_an_existing_run_that_fits_is_accepted(trainer, stored):
    answer = trainer("train", "--dry_run", "--run_dir=run", "--steps=100")
    assert answer.returncode == ExitCode.OK, answer.stderr
    assert json.loads(answer.stdout)["batch_size"] == 8
    # A damaged checkpoint will not be resumed from, so the run has done fewer steps.
    (stored.checkpoints / "ckpt-100.index").write_bytes(b"y")
    assert trainer("train", "--dry_run", "--run_dir=run", "--steps=50").returncode == ExitCode.OK
    other = trainer("train", "--dry_run", "--run_dir=run", "--batch_size=4", "--fresh")
    assert other.returncode == ExitCode.OK
    job = trainer("train", "--dry_run", "--fresh", JOB_COMPLETION_INDEX="0")
    assert job.returncode == ExitCode.USAGE
    assert "--fresh is refused where JOB_COMPLETION_INDEX is set" in job.stderr
