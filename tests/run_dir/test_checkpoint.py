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


class Values:
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
    values = Values(path)
    for step in (1, 2, 3):
        values.save(step)
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
    "manifest torn": lambda f: truncate(f / "ckpt-3.json"),
    "manifest of another version": lambda f: (f / "ckpt-3.json").write_text(
        '{"format_version": 2, "files": {}}'
    ),
    "half deleted": lambda f: ((f / "ckpt-3.json").unlink(), data(f, 3).unlink()),
    "cut off while it was saved": lambda f: ((f / "ckpt-3.json").unlink(), truncate(data(f, 3))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(folder, damage, caplog):
    DAMAGE[damage](folder)
    left = sorted(path.name for path in folder.glob("ckpt-3*"))
    values = Values(folder)
    assert values.restore() == 2
    assert not list(folder.glob("ckpt-3*"))
    assert sorted(p.name for p in (folder / "damaged" / "ckpt-3.1").iterdir()) == left
    values.save(3)  # the same step again
    assert Values(folder).restore() == 3


@pytest.mark.parametrize(
    "harm",
    [
        lambda f: (f / "checkpoint").unlink(),
        lambda f: (f / "checkpoint").write_bytes(b"\x00torn"),
        lambda f: (
            f / "ckpt-3.json"
        ).unlink(),  # killed before the manifest was written; the data are intact
    ],
)
def test_what_does_no_harm(folder, harm):
    harm(folder)
    assert Values(folder).restore() == 3


def test_several_damaged_ones(folder):
    flip(data(folder, 3))
    truncate(data(folder, 2))
    assert Values(folder).restore() == 1


def test_none_that_loads_is_no_fresh_start(folder):
    for step in (1, 2, 3):
        flip(data(folder, step))
    for _ in range(2):  # the second attempt fails, too
        with pytest.raises(
            CheckpointError, match=r"None .* loaded \(ckpt-3: .*; ckpt-1: .*--fresh"
        ):
            Values(folder).restore()
    for path in folder.glob("ckpt-*"):
        path.unlink()
    with pytest.raises(
        CheckpointError, match="no files are left"
    ):  # TensorFlow's state file exists
        Values(folder).restore()


def test_a_first_save_that_was_cut_off_is_a_fresh_start(folder):
    (folder / "checkpoint").unlink()
    for path in folder.glob("*.json"):
        path.unlink()
    for step in (1, 2):
        for path in folder.glob(f"ckpt-{step}.*"):
            path.unlink()
    truncate(data(folder, 3))
    assert Values(folder).restore() is None


def test_old_ones_go_once_the_new_one_is_verified(folder, monkeypatch):
    values = Values(folder, keep=2)
    values.restore()
    monkeypatch.setattr(checkpoints, "_read_all", lambda path: [][0])  # as if the file were damaged
    for step in (4, 5):  # the number of saves that may fail
        with pytest.raises(IndexError):
            values.save(step)
    monkeypatch.undo()
    assert (folder / "ckpt-3.json").exists()
    values.save(6)
    assert [path.name for path in list_checkpoints(folder)] == [
        "ckpt-6",
        "ckpt-5",
        "ckpt-4",
        "ckpt-3",
    ]  # two of them are verified
    values.save(7)
    assert [path.name for path in list_checkpoints(folder)] == ["ckpt-7", "ckpt-6"]


def test_the_manifest_says_what_is_there(folder):
    manifest = json.loads((folder / "ckpt-2.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["step"] == 2
    assert set(manifest["files"]) == {"ckpt-2.index", data(folder, 2).name}
    assert manifest["files"]["ckpt-2.index"]["bytes"] == (folder / "ckpt-2.index").stat().st_size


def test_failing_saves_are_counted_and_end_a_run_at_last(folder, caplog):
    values, checks = Values(folder), []
    values.restore()
    saver = Saver(values.checkpoints, max_failed=2, check=lambda: checks.append(1))
    away = folder.with_name("away")

    def fail():
        folder.rename(away)
        folder.write_text("no folder any more")  # makes writes fail, even for root

    def mend():
        folder.unlink()
        away.rename(folder)

    fail()
    assert not saver.save(4, flush=lambda: None)
    assert not saver.save(5, flush=lambda: None)
    mend()
    assert saver.save(6, flush=lambda: None)
    assert saver.failures == 2
    assert Values(folder).restore() == 3  # the variable still has the value of step 3
    fail()
    for step in (7, 8):
        assert not saver.save(step, flush=lambda: None)
    with pytest.raises(StorageError, match=r"step 9 failed .* after 2 other .* from step 6"):
        saver.save(9, flush=lambda: None)
    assert len(checks) == 6
    mend()

    def full():
        raise OSError(28, "No space left on device")

    assert not Saver(values.checkpoints, max_failed=2, check=lambda: None).save(10, flush=full)
    assert (
        list_checkpoints(folder)[0].name == "ckpt-6"
    )  # no checkpoint is saved without its metrics
