"""Runs that are killed, stopped, started twice or out of disk space; run by `make test-faults`."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.runs import TINY_FLAGS, Process, assert_same_run, records, steps, variables
from trainer import recipes
from trainer.errors import ExitCode
from trainer.run_dir.checkpoint_files import list_checkpoints

pytestmark = pytest.mark.faults

EXACT = [
    *((recipe, "float32", "cpu:1") for recipe in recipes.RECIPES),
    *(
        (recipe, precision, devices)
        for recipe in ("dcgan", "mlp")
        for precision in ("float32", "bfloat16", "float16")
        for devices in ("cpu:1", "cpu:2")
        if (precision, devices) != ("float32", "cpu:1")
    ),
]


@pytest.mark.parametrize(("recipe", "precision", "devices"), EXACT)
def test_resumed_run_is_identical_to_an_uninterrupted_run(
    tiny, run, tmp_path, recipe, precision, devices
):
    """Enables all features with a state, such as decaying noise, loss scales, EMA and schedules."""
    given = dict(
        recipe=recipe, precision=precision, devices=devices, conditional=True, log_every_steps=1,
        sample_every=steps(2), log_every_secs=1e9, horizontal_flip=True, d_input_noise=0.1,
        d_layer_noise=0.1, noise_decay_kimg=0.1, ema_half_life_kimg=0.05, flip_labels=0.1,
        # In kimg, because a share of the run would be a share of the first length.
        g_lr="cosine 2e-4 0 over 0.2 kimg", d_lr="linear 2e-4 0 over 0.3 kimg",
        augment="ada", augment_speed_kimg=0.05,
    )  # fmt: skip
    if recipe == "dcgan-studiogan":
        del given["conditional"]
    if recipe == "r3gan":  # whose loss judges no image on its own
        del given["flip_labels"], given["augment_speed_kimg"], given["d_layer_noise"]
        given["augment_strength"] = "linear 0 1 over 0.1 kimg"
        given["hyperparameters"] = "blocks=1"
    uninterrupted = tiny(**given, length=steps(7), run_dir=str(tmp_path / "uninterrupted"))
    run(uninterrupted)
    interrupted = tiny(**given, run_dir=str(tmp_path / "interrupted"))
    for end in (2, 5, 7):
        run(interrupted.replace(length=steps(end)))
        if end == 5:  # samples are also drawn at the end of each part
            (tmp_path / "interrupted" / "samples" / "fakes-00000.040.png").unlink()
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "interrupted")


@pytest.mark.parametrize(("before", "after"), [("cpu:2", "cpu:1"), ("cpu:1", "cpu:4")])
@pytest.mark.parametrize("accumulate", [False, True])
def test_run_resumes_on_another_number_of_replicas(tmp_path, before, after, accumulate):
    arguments = ["--recipe=dcgan-sigmoid", *TINY_FLAGS, "--log_every_steps=1"]
    accumulation = ["--batch_per_replica=2"] if accumulate else []
    for name, first, second in (("one", "cpu:1", "cpu:1"), ("other", before, after)):
        for end, devices in ((3, first), (6, second)):
            process = Process(
                tmp_path,
                *arguments,
                *accumulation,
                f"--devices={devices}",
                f"--steps={end}",
                run_dir=name,
            )
            assert process.wait() == 0, process.output
    pairs = list(zip(records(tmp_path / "one"), records(tmp_path / "other"), strict=True))
    assert len(pairs) == 6
    for one, other in pairs:
        for name in ("d_loss", "g_loss"):
            assert other[name] == pytest.approx(one[name], rel=2e-3)


SIGTERM_STEPS = 800  # long enough that fast machines are still training at the signal
PHASES = ["start", "import", "compile", "training", "sampling", "saving"]


@pytest.fixture(scope="module")
def uninterrupted_run(tmp_path_factory):
    """Returns the run directory of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert Process(folder, *TINY_FLAGS, f"--steps={SIGTERM_STEPS}", "--devices=cpu").wait() == 0
    return folder / "run"


@pytest.mark.parametrize("phase", PHASES)
def test_run_stopped_by_sigterm_in_any_phase_resumes(tmp_path, uninterrupted_run, phase):
    interval = {
        "sampling": ["--sample_every_kimg=0.008"],
        "saving": ["--checkpoint_every_kimg=0.008"],
    }.get(phase, [])
    arguments = [
        *TINY_FLAGS,
        f"--steps={SIGTERM_STEPS}",
        "--devices=cpu",
        "--log_every_secs=0",
        *interval,
    ]
    process = Process(tmp_path, *arguments)
    if phase in ("start", "import"):
        time.sleep(0.3 if phase == "start" else 2.5)
    elif phase == "compile":
        process.wait_for("Run directory")
        time.sleep(0.5)
    else:
        process.wait_for("images/s")
        time.sleep(random.Random(phase).uniform(0, 0.3))
    began = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    code = process.wait()
    saved = bool(list_checkpoints(tmp_path / "run" / "checkpoints"))
    assert code == (ExitCode.STOPPED if saved else ExitCode.TERMINATED), process.output
    assert saved or phase in ("start", "import")
    assert time.monotonic() - began < 15
    assert "Traceback" not in process.output
    if phase in ("training", "sampling", "saving"):
        done = records(tmp_path / "run")[-1]["step"]
        assert (
            f"Stopped on request after {done} of {SIGTERM_STEPS} steps, which are saved in run."
            in process.output
        )
        assert f"Running the same command again resumes from step {done}." in process.output
        assert list_checkpoints(tmp_path / "run" / "checkpoints")[0].name == f"ckpt-{done}"
    resumed = Process(tmp_path, *arguments)
    assert resumed.wait() == 0, resumed.output
    expected, actual = variables(uninterrupted_run), variables(tmp_path / "run")
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_run_killed_repeatedly_is_identical_to_an_uninterrupted_run(tmp_path):
    """Kills the run with SIGKILL at random times, so that some kills interrupt a save."""
    kills = 12
    arguments = [
        *TINY_FLAGS, f"--steps={250 * kills}", "--devices=cpu", "--checkpoint_every_kimg=0.08",
        "--sample_every_kimg=4", "--log_every_steps=25", "--log_every_secs=1e9",
    ]  # fmt: skip
    rng, done, unfinished = random.Random(kills), 0, 0
    while True:
        process = Process(tmp_path, *arguments)
        if done == kills:
            break
        if done % 4:
            with contextlib.suppress(AssertionError):  # the run was already complete
                process.wait_for("Run directory")
            delay = rng.uniform(0, 4)
        else:
            delay = rng.uniform(0, 8)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(delay)
            break
        process.popen.kill()
        process.wait()
        assert "Traceback" not in process.output, process.output
        done += 1
        folder = tmp_path / "run" / "checkpoints"
        unfinished += sum(not p.with_suffix(".json").exists() for p in list_checkpoints(folder))
    assert process.wait() == 0, process.output
    print(f"{done} kills, {unfinished} of them during a save")
    assert done > kills / 2
    uninterrupted = Process(tmp_path, *arguments, run_dir="uninterrupted")
    assert uninterrupted.wait(3000) == 0, uninterrupted.output
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "run")


@pytest.mark.parametrize(
    ("recipe", "precision", "devices", "rows"),
    [
        ("sngan", "bfloat16", "cpu:2", 0),
        ("sngan", "float16", "cpu:1", 4),
        ("r3gan", "float32", "cpu:4", 1),
        ("r3gan", "bfloat16", "cpu:1", 0),
    ],
)
def test_residual_run_killed_once_is_identical(tmp_path, recipe, precision, devices, rows):
    own = {"sngan": ["--d_steps=1"], "r3gan": ["--hyperparameters=blocks=1", "--augment=none"]}
    arguments = [
        f"--recipe={recipe}", *own[recipe], *TINY_FLAGS, "--image_size=8", "--steps=80",
        f"--precision={precision}", f"--devices={devices}", f"--batch_per_replica={rows}",
        "--checkpoint_every_kimg=0.08", "--log_every_steps=10", "--log_every_secs=1e9",
        "--sample_every_kimg=0.8",
    ]  # fmt: skip
    killed = Process(tmp_path, *arguments)
    folder = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 240
    while not (folder / "ckpt-20.json").exists() and time.monotonic() < deadline:
        assert killed.popen.poll() is None, killed.output
        time.sleep(0.02)
    killed.popen.kill()
    assert killed.wait() == -signal.SIGKILL
    resumed = Process(tmp_path, *arguments)
    assert resumed.wait() == 0, resumed.output
    assert "Resuming from" in resumed.output
    uninterrupted = Process(tmp_path, *arguments, run_dir="uninterrupted")
    assert uninterrupted.wait() == 0, uninterrupted.output
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "run")


def test_second_process_in_a_run_directory_is_rejected(tmp_path):
    arguments = [*TINY_FLAGS, "--steps=1000000", "--devices=cpu", "--checkpoint_every_kimg=0.4"]
    first = Process(tmp_path, *arguments)
    first.wait_for("images/s")
    second = Process(tmp_path, *arguments)
    assert second.wait() == ExitCode.BUSY, second.output
    assert f"is held by process {first.popen.pid} on " in second.output
    assert "--fresh" not in second.output
    fresh = Process(tmp_path, *arguments, "--fresh")
    assert fresh.wait() == ExitCode.BUSY, fresh.output
    assert first.popen.poll() is None
    first.popen.kill()
    third = Process(tmp_path, *arguments)
    third.wait_for("Taking over from process")
    third.wait_for("Resuming from")
    third.popen.terminate()
    assert third.wait() == ExitCode.STOPPED


FULL_DISK = """
mkdir disk && mount -t tmpfs -o size=6m tmpfs disk || exit 99
"$@" > log 2>&1 &
trainer=$!
until [ -e disk/run/checkpoints/ckpt-50.json ]; do sleep 0.05; done
{steps}
wait $trainer
code=$?
cp -r disk/run .
exit $code
"""
FILL_DISK = "dd if=/dev/zero of=disk/filler bs=4k 2>/dev/null"
WAIT_FOR_FAILED_SAVE = "until grep -q 'save at step' log; do sleep 0.05; done"


def run_on_a_small_disk(folder: Path, steps: str, *arguments: str) -> tuple[int, str]:
    """Trains on a separate small disk while shell commands run; returns the exit code and the log.

    Args:
      folder: folder for the log and, after the run, for a copy of the run directory.
      steps: shell commands to run once the checkpoint of step 50 is saved.
      *arguments: flags of the training run.
    """
    script = FULL_DISK.replace("{steps}", steps)
    command = [sys.executable, "-m", "trainer", "train", "--run_dir=disk/run", *arguments]
    process = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *command],
        cwd=folder, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    if process.returncode == 99 or "unshare" in process.stderr:
        pytest.skip(f"no permission to mount a file system: {process.stderr}")
    return process.returncode, (folder / "log").read_text()


DISK_RUN = [
    *TINY_FLAGS, "--steps=3000", "--devices=cpu", "--checkpoint_every_kimg=0.4",
    "--sample_every_kimg=0.8", "--log_every_secs=0.5", "--keep_checkpoints=2",
]  # fmt: skip


def test_training_continues_after_a_disk_was_temporarily_full(tmp_path):
    steps = f"{FILL_DISK}\n{WAIT_FOR_FAILED_SAVE}\nrm disk/filler"
    code, log = run_on_a_small_disk(tmp_path, steps, *DISK_RUN, "--max_failed_saves=100")
    assert code == 0, log
    assert (
        "Training continues; 99 more saves may fail. Running the same command again resumes from "
        in log
    )
    lines = records(tmp_path / "run")
    assert sum(line["steps"] for line in lines) == lines[-1]["step"] == 3000
    assert lines[-1]["failed_saves"] >= 1
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[0].name == "ckpt-3000"


def test_run_stopped_by_a_full_disk_resumes_from_its_last_checkpoint(tmp_path):
    code, log = run_on_a_small_disk(tmp_path, FILL_DISK, *DISK_RUN, "--max_failed_saves=3")
    assert code == ExitCode.CRASH == 1, log
    assert "after 3 other consecutive failures. Free some disk space" in log
    assert "Traceback" not in log
    resumed = Process(tmp_path, *DISK_RUN, "--max_failed_saves=4")
    assert resumed.wait() == 0, resumed.output
    assert "Resuming from" in resumed.output
    uninterrupted = Process(tmp_path, *DISK_RUN, run_dir="uninterrupted")
    assert uninterrupted.wait() == 0
    expected, actual = variables(tmp_path / "uninterrupted"), variables(tmp_path / "run")
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_training_continues_after_a_disk_was_temporarily_read_only(tmp_path):
    checkpoints = "disk/run/checkpoints"
    steps = (
        f"mount --bind {checkpoints} {checkpoints} || exit 99\n"
        f"mount -o remount,bind,ro {checkpoints} || exit 99\n"
        f"{WAIT_FOR_FAILED_SAVE}\numount {checkpoints}"
    )
    code, log = run_on_a_small_disk(tmp_path, steps, *DISK_RUN, "--max_failed_saves=100")
    assert code == 0, log
    assert "Read-only file system" in log
    lines = records(tmp_path / "run")
    assert sum(line["steps"] for line in lines) == lines[-1]["step"] == 3000
    assert json.loads((tmp_path / "run/checkpoints/ckpt-3000.json").read_text())["step"] == 3000
