"""The first minutes of use: changed lengths, signals and early stops."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.helpers.runs import TINY_FLAGS, Process, records, steps
from trainer.errors import ExitCode
from trainer.training.loop import Periodic

TRAIN = ["train", "--recipe=mlp", *TINY_FLAGS, "--devices=cpu", "--run_dir=run"]


def test_length_below_the_steps_done_is_a_usage_error_and_changes_no_file(trainer, tmp_path):
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
    events = tmp_path / "run" / "events.jsonl"  # to which refused starts are added
    assert events.read_bytes().startswith(before.pop(events)[0])
    for path, (content, modified) in before.items():
        assert path.read_bytes() == content, path
        assert path.stat().st_mtime_ns == modified, path
    same = trainer(*TRAIN, "--steps=6")
    assert same.returncode == 0
    assert "run is complete: 6 steps" in same.stdout


def test_length_equal_to_the_steps_done_completes_an_interrupted_run(tmp_path, trainer):
    process = Process(tmp_path, *TRAIN[1:-1], "--steps=100000", "--log_every_secs=0")
    process.wait_for("images/s")
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() == ExitCode.STOPPED, process.output
    done = records(tmp_path / "run")[-1]["step"]
    completed = trainer(*TRAIN, f"--steps={done}")
    assert completed.returncode == 0, completed.stderr
    assert (tmp_path / "run" / "generator.keras").exists()
    assert json.loads((tmp_path / "run/config.json").read_text())["length"] == f"{done} steps"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_signals_stop_generate_and_evaluate(trainer, tmp_path, command, number):
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


def test_second_signal_stops_without_a_save(tmp_path):
    process = Process(tmp_path, *TRAIN[1:-1], "--steps=100000", "--log_every_secs=0")
    process.wait_for("images/s")
    process.popen.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.popen.send_signal(signal.SIGINT)
    assert process.wait() in (ExitCode.INTERRUPTED, ExitCode.STOPPED)
    stopped_immediately = process.popen.returncode == ExitCode.INTERRUPTED
    assert ("Stopped at once by a second signal, without a save." in process.output) == (
        stopped_immediately
    )
    assert ("which are saved in run" in process.output) != stopped_immediately


def test_an_interrupted_run_has_a_gif(tmp_path):
    process = Process(tmp_path, *TRAIN[1:-1], "--steps=100000", "--sample_every_kimg=0.08")
    process.wait_for("images/s")
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() == ExitCode.STOPPED, process.output
    grids = list((tmp_path / "run/samples").glob("fakes-*.png"))
    with Image.open(tmp_path / "run/training.gif") as gif:
        assert 1 <= gif.n_frames <= len(grids)


def test_a_killed_run_is_not_shown_as_running(tmp_path, trainer):
    process = Process(tmp_path, *TRAIN[1:-1], "--steps=1000000")
    process.wait_for("images/s")
    assert "State       running" in trainer("status", "--run_dir=run").stdout
    process.popen.kill()
    process.wait()
    status = trainer("status", "--run_dir=run").stdout
    assert "State       stopped" in status
    assert "the job was killed; its last heartbeat was 0:0" in status


def test_a_second_job_says_at_once_what_it_waits_for(tmp_path):
    first = Process(tmp_path, *TRAIN[1:-1], "--steps=1000000")
    first.wait_for("images/s")
    second = Process(tmp_path, *TRAIN[1:-1], "--steps=1000000")
    second.wait_for(f"run is held by process {first.popen.pid} on")
    assert second.popen.poll() is None
    second.popen.kill()
    first.popen.kill()
    assert "Waiting up to 15 s for it to end." in second.output


def test_the_newest_evaluation_is_shown(tiny, run, tmp_path, trainer):
    config = tiny(recipe="mlp", length=steps(40), evaluate_every="0.16 kimg", evaluate_samples=100)
    run(config)
    evaluations = [
        json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()
    ]
    last = records(tmp_path / "run")[-1]
    assert (last["step"], last["evaluated_kimg"]) == (40, 0.32)
    assert last["fid"] == evaluations[-1]["fid"]
    assert sum(line["steps"] for line in records(tmp_path / "run")) == 40
    status = json.loads(trainer("status", "--run_dir=run", "--json").stdout)
    assert status["evaluation"]["fid"] == evaluations[-1]["fid"]


def test_early_sample_grids_are_at_fixed_positions():
    every = Periodic(20_000, lambda step: None, early=(1_000, 2_000, 5_000, 10_000))
    positions, step = [], 0
    while step < 700:
        step = every.next_due(step, 64)
        positions.append(step)
    assert positions == [16, 32, 79, 157, 313, 625, 938]
    assert Periodic(3_000, lambda step: None, early=(1_000, 5_000)).next_due(47, 64) == 94
    assert Periodic(0, lambda step: None, early=(1_000,)).next_due(0, 64) is None


def test_the_first_grids_come_early(tiny, run, tmp_path):
    run(tiny(recipe="mlp", length=steps(130), batch_size=16, sample_every="20 kimg"))
    names = sorted(path.name for path in (tmp_path / "run/samples").glob("fakes-*"))
    assert names == [
        "fakes-00000.000.png", "fakes-00001.008.png", "fakes-00002.000.png", "fakes-00002.080.png",
    ]  # fmt: skip


def test_a_mistyped_run_directory_is_reported(trainer, tmp_path):
    result = trainer("train", "--run_dir=runs/mistyped", "--steps=1", *TINY_FLAGS, "--devices=cpu")
    assert result.returncode == 0, result.stderr
    expected = (
        "WARNING: Starting a new run in runs/mistyped. --recipe and --dataset are not given, so it "
        "trains dcgan on digits."
    )
    assert expected in result.stdout
    named = trainer("train", "--run_dir=runs/b", "--recipe=mlp", "--steps=1", *TINY_FLAGS)
    assert "Starting a new run" not in named.stdout


@pytest.mark.parametrize(
    ("length", "stated", "longer"),
    [
        ("--steps=2", "Length: 2 steps of 8 images = 0.016 kimg = ", "--steps=4"),
        ("--kimg=0.02", "Length: 0.02 kimg = 3 steps of 8 images = 0.024 kimg = ", "--kimg=0.04"),
    ],
)
def test_lengths_are_stated_in_the_unit_of_the_user(tmp_path, tiny, run, length, stated, longer):
    unit, value = length[2:].split("=")
    np.savez(tmp_path / "one.npz", x=np.zeros((9, 8, 8), np.uint8), y=np.zeros(9, np.int64))
    config = tiny(recipe="mlp", length=f"{value} {unit}", dataset=str(tmp_path / "one.npz"))
    output = run(config)
    assert stated in output
    assert ": 9 images 8x8x1, 1 class\n" in output
    assert output.endswith(f"python -m trainer train --run_dir={config.run_dir} {longer}\n")
    lines = output.splitlines()
    assert len(set(lines)) == len(lines)
