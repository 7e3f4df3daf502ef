"""Tests of checkpoints: verification, fallback from damaged ones, and retention."""

import json

import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import CheckpointError, StorageError
from trainer.run_dir import checkpoints
from trainer.run_dir.checkpoint_files import list_checkpoints
from trainer.run_dir.checkpoints import Checkpoints
from trainer.run_dir.saver import Saver


class OneVariableRun:
    """A run of one variable, whose value is the step of its checkpoint."""

    def __init__(self, folder, keep=3, spare=2):
        self.value = tf.Variable(np.zeros(1000, np.float32))
        self.checkpoints = Checkpoints(folder, {"value": self.value}, keep=keep, spare=spare)

    def save(self, step):
        self.value.assign(np.full(1000, step, np.float32))
        self.checkpoints.save(step)

    def restore(self):
        """Restores the newest checkpoint and returns its step, or None."""
        if self.checkpoints.restore_newest() is None:
            return None
        (value,) = set(self.value.numpy())
        return int(value)


@pytest.fixture
def folder(tmp_path):
    """A folder with the checkpoints of steps 1, 2 and 3."""
    path = tmp_path / "checkpoints"
    run = OneVariableRun(path)
    for step in (1, 2, 3):
        run.save(step)
    return path


def data(folder, step):
    return folder / f"ckpt-{step}.data-00000-of-00001"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "data bit flipped": lambda f: flip(data(f, 3)),
    "data truncated": lambda f: truncate(data(f, 3)),
    "data empty": lambda f: data(f, 3).write_bytes(b""),
    "data missing": lambda f: data(f, 3).unlink(),
    "index bit flipped": lambda f: flip(f / "ckpt-3.index"),
    "index truncated": lambda f: truncate(f / "ckpt-3.index"),
    "index missing": lambda f: (f / "ckpt-3.index").unlink(),
    "manifest truncated": lambda f: truncate(f / "ckpt-3.json"),
    "manifest of another version": lambda f: (f / "ckpt-3.json").write_text(
        '{"format_version": 2, "files": {}}'
    ),
    "half deleted": lambda f: ((f / "ckpt-3.json").unlink(), data(f, 3).unlink()),
    "interrupted save": lambda f: ((f / "ckpt-3.json").unlink(), truncate(data(f, 3))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_previous_checkpoint_replaces_a_damaged_one(folder, damage, caplog):
    DAMAGE[damage](folder)
    left = sorted(path.name for path in folder.glob("ckpt-3*"))
    run = OneVariableRun(folder)
    assert run.restore() == 2
    assert not list(folder.glob("ckpt-3*"))
    assert sorted(p.name for p in (folder / "damaged" / "ckpt-3.1").iterdir()) == left
    run.save(3)  # the same step again
    assert OneVariableRun(folder).restore() == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "checkpoint").unlink(),
        lambda f: (f / "checkpoint").write_bytes(b"\x00torn"),
        lambda f: (
            f / "ckpt-3.json"
        ).unlink(),  # killed before the manifest was written; the data are intact
    ],
)
def test_harmless_damage_is_ignored(folder, damage):
    damage(folder)
    assert OneVariableRun(folder).restore() == 3


def test_several_damaged_checkpoints_are_skipped(folder):
    flip(data(folder, 3))
    truncate(data(folder, 2))
    assert OneVariableRun(folder).restore() == 1


def test_no_fresh_start_if_no_checkpoint_loads(folder):
    for step in (1, 2, 3):
        flip(data(folder, step))
    for _ in range(2):  # the second attempt fails, too
        with pytest.raises(
            CheckpointError, match=r"None .* loaded \(ckpt-3: .*; ckpt-1: .*--fresh"
        ):
            OneVariableRun(folder).restore()
    for path in folder.glob("ckpt-*"):
        path.unlink()
    with pytest.raises(
        CheckpointError, match="no files are left"
    ):  # TensorFlow's state file exists
        OneVariableRun(folder).restore()


def test_an_interrupted_first_save_is_a_fresh_start(folder):
    (folder / "checkpoint").unlink()
    for path in folder.glob("*.json"):
        path.unlink()
    for step in (1, 2):
        for path in folder.glob(f"ckpt-{step}.*"):
            path.unlink()
    truncate(data(folder, 3))
    assert OneVariableRun(folder).restore() is None


def test_old_checkpoints_are_removed_after_the_new_one_is_verified(folder, monkeypatch):
    run = OneVariableRun(folder, keep=2)
    run.restore()
    monkeypatch.setattr(checkpoints, "_read_all", lambda path: [][0])  # as if the file were damaged
    for step in (4, 5):  # the number of saves that may fail
        with pytest.raises(IndexError):
            run.save(step)
    monkeypatch.undo()
    assert (folder / "ckpt-3.json").exists()
    run.save(6)
    assert [path.name for path in list_checkpoints(folder)] == [
        "ckpt-6",
        "ckpt-5",
        "ckpt-4",
        "ckpt-3",
    ]  # two of them are verified
    run.save(7)
    assert [path.name for path in list_checkpoints(folder)] == ["ckpt-7", "ckpt-6"]


def test_the_manifest_describes_the_files(folder):
    manifest = json.loads((folder / "ckpt-2.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["step"] == 2
    assert set(manifest["files"]) == {"ckpt-2.index", data(folder, 2).name}
    assert manifest["files"]["ckpt-2.index"]["bytes"] == (folder / "ckpt-2.index").stat().st_size


def test_too_many_failed_saves_end_the_run(folder, caplog):
    run, checks = OneVariableRun(folder), []
    run.restore()
    saver = Saver(run.checkpoints, max_failed=2, check_ownership=lambda: checks.append(1))
    away = folder.with_name("away")

    def fail():
        folder.rename(away)
        folder.write_text("a file instead of the folder")  # makes writes fail, even for root

    def repair():
        folder.unlink()
        away.rename(folder)

    fail()
    assert not saver.save(4, flush=lambda: None)
    assert not saver.save(5, flush=lambda: None)
    repair()
    assert saver.save(6, flush=lambda: None)
    assert saver.failures == 2
    assert OneVariableRun(folder).restore() == 3  # the variable still has the value of step 3
    fail()
    for step in (7, 8):
        assert not saver.save(step, flush=lambda: None)
    with pytest.raises(StorageError, match=r"step 9 failed .* after 2 other .* from step 6"):
        saver.save(9, flush=lambda: None)
    assert len(checks) == 6
    repair()

    def full():
        raise OSError(28, "No space left on device")

    assert not Saver(run.checkpoints, max_failed=2, check_ownership=lambda: None).save(
        10, flush=full
    )
    assert (
        list_checkpoints(folder)[0].name == "ckpt-6"
    )  # no checkpoint is saved without its metrics
