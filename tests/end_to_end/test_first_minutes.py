"""What a new user may meet in the first minutes: lengths, stops and early results."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.runs import TINY_FLAGS, Process, records
from trainer.errors import ExitCode

TRAIN = ["train", "--recipe=mlp", *TINY_FLAGS, "--devices=cpu", "--run_dir=run"]


def test_a_length_below_the_steps_done_changes_nothing(trainer, tmp_path):
    assert trainer(*TRAIN, "--steps=6").returncode == 0
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in (tmp_path / "run").rglob("*")
        if path.is_file()
    }
    for length in ("--steps=5", "--kimg=0", "--epochs=0"):
        shorter = trainer(*TRAIN, length)
        assert shorter.returncode == ExitCode.USAGE
        assert f"{length} is " in shorter.stderr
        assert "run has already trained 6 steps (0.048 kimg)" in shorter.stderr
        assert shorter.stderr.count("\n") == 1
    for path, (content, modified) in before.items():
        assert path.read_bytes() == content, path
        assert path.stat().st_mtime_ns == modified, path
    same = trainer(*TRAIN, "--steps=6")
    assert same.returncode == 0
    assert "run is complete: 6 steps" in same.stdout


def test_the_length_of_an_interrupted_run_may_be_the_steps_done(tmp_path, trainer):
    process = Process(tmp_path, *TRAIN[1:-1], "--steps=100000", "--log_every_secs=0")
    process.wait_for("images/s")
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == ExitCode.STOPPED, process.output
    done = records(tmp_path / "run")[-1]["step"]
    ended = trainer(*TRAIN, f"--steps={done}")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run" / "generator.keras").exists()
    assert json.loads((tmp_path / "run/config.json").read_text())["length"] == f"{done} steps"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_a_signal_to_a_command_that_does_not_train(trainer, tmp_path, command, number):
    run_dir = tmp_path / "run"
    if not run_dir.exists():
        assert trainer(*TRAIN, "--steps=1").returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", command, "--run_dir=run", "--devices=cpu"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(1.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == "Stopped on request.\n"


def test_a_second_signal_ends_without_a_save(tmp_path):
    process = Process(tmp_path, *TRAIN[1:-1], "--steps=100000", "--log_every_secs=0")
    process.wait_for("images/s")
    process.popen.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.popen.send_signal(signal.SIGINT)
    assert process.end() in (ExitCode.INTERRUPTED, ExitCode.STOPPED)
    ended_at_once = process.popen.returncode == ExitCode.INTERRUPTED
    assert ("Stopped at once by a second signal, without a save." in process.output) == (
        ended_at_once
    )
    assert ("which are saved in run" in process.output) != ended_at_once
