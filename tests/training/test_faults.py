"""Failures during training: divergence, collapse, changed data, signals and failed saves."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.runs import records, steps, variables
from trainer.data import sources
from trainer.errors import (
    CheckpointError,
    DivergedError,
    ExitCode,
    NotFiniteError,
    StorageError,
    UsageError,
)
from trainer.machine import replicas
from trainer.reporting.prometheus import Telemetry
from trainer.run_dir.checkpoint_files import list_checkpoints
from trainer.run_dir.checkpoints import Checkpoints
from trainer.run_dir.directory import RunDir
from trainer.run_dir.events import read_newest
from trainer.training import run as run_module
from trainer.training import state
from trainer.training.divergence import check_finite
from trainer.training.updates import TracedNetwork


@pytest.fixture
def make_weight_nan(monkeypatch):
    """Returns a function that makes training set a generator weight to NaN before a given step."""

    def at(step, times=1):
        real = run_module.compile_steps
        remaining = [times]

        def make(config, devices, variables, *rest, **more):
            run_steps = real(config, devices, variables, *rest, **more)

            def with_bad_weight(count):
                done = variables.steps_done(config.batch_size)
                if remaining[0] and done <= step < done + count:
                    remaining[0] -= 1
                    run_steps(step - done)
                    weight = variables.generator.trainable_variables[0]
                    weight.assign(tf.fill(weight.shape, np.nan))
                    count -= step - done
                return run_steps(count)

            return with_bad_weight

        monkeypatch.setattr(run_module, "compile_steps", make)

    return at


def test_diverged_run_continues_from_the_last_checkpoint(
    tiny, run, make_weight_nan, tmp_path, monkeypatch
):
    counted = []
    count = Telemetry.count
    monkeypatch.setattr(
        Telemetry, "count", lambda self, *more: counted.append(more) or count(self, *more)
    )
    config = tiny(recipe="mlp", length=steps(9), checkpoint_every=steps(2), log_every_steps=1)
    make_weight_nan(5)
    output = run(config)
    warning = (
        r"WARNING: Training diverged: d_loss, g_loss, .*_grad_norm not finite at step 6\. Restored"
    )
    assert re.search(
        rf"{warning} .*ckpt-4; training continues with other random numbers \(rollback 1 of 3\)",
        output,
    )
    lines = records(config.run_dir)
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line.get("rollbacks", 0) for line in lines] == [0] * 4 + [1] * 5
    assert [name for name, *more in counted if more != [0]] == ["rollbacks_total"]
    values = variables(config.run_dir)
    assert all(np.isfinite(value).all() for value in values.values())
    # Random numbers differ from those of an uninterrupted run after the rollback, and only then.
    uninterrupted = config.replace(run_dir=str(tmp_path / "uninterrupted"))
    run(uninterrupted)
    pairs = list(zip(lines, records(uninterrupted.run_dir), strict=True))
    assert all((one["d_loss"] == other["d_loss"]) == (one["step"] <= 4) for one, other in pairs)


def test_run_stops_after_too_many_rollbacks(tiny, run, make_weight_nan):
    config = tiny(recipe="mlp", length=steps(9), checkpoint_every=steps(2), max_rollbacks=2)
    make_weight_nan(5, times=3)
    with pytest.raises(DivergedError, match=r"not finite at step 6, after 2 rollbacks") as error:
        run(config)
    assert error.value.exit_code == ExitCode.DIVERGED == 70
    assert list_checkpoints(RunDir(Path(config.run_dir)).checkpoints)[0].name == "ckpt-4"
    assert [line["step"] for line in records(config.run_dir)][-1] <= 5


def update_with_bad_gradient(config, replica):
    """Updates G with a gradient that is not finite on one replica; returns its norm and state."""
    devices = replicas.create_replicas(config)
    with devices.scope():
        shape = sources.load(config).shape
        variables = state.create_state(config, shape, devices.precision)
    before = [variable.numpy() for variable in variables.generator.variables]

    @tf.function
    def update():
        def on_replica():
            bad = tf.equal(replicas.replica_index(), replica)
            variables.load()
            g = TracedNetwork(variables.g)
            gradients = [tf.zeros_like(w) for w in g.weights]
            gradients[3] += tf.where(bad, np.inf, 0.0)
            half_square = g.apply(variables.g.weights.join_sum([gradients]), 0)
            variables.store()
            return half_square

        return devices.run_and_sum(on_replica)

    return update().numpy(), before, variables


@pytest.mark.parametrize("replica", [0, 1])
def test_gradients_not_finite_on_one_replica_change_no_weights(tiny, replica):
    config = tiny(recipe="mlp", precision="float16", devices="cpu:2")
    half_square, before, variables = update_with_bad_gradient(config, replica)
    assert not np.isfinite(half_square)
    for old, new in zip(before, variables.generator.variables, strict=True):
        np.testing.assert_array_equal(new.numpy(), old)
    assert int(variables.g.optimizer.iterations.numpy()) == 0


def test_gradients_not_finite_are_found_on_all_replicas_without_loss_scales(tiny):
    """Checks that the replicas stay equal, and that the run sees what it rolls back from."""
    half_square, _, variables = update_with_bad_gradient(tiny(recipe="mlp", devices="cpu:2"), 1)
    assert not np.isfinite(half_square)
    for variable in variables.generator.trainable_variables:
        one, two = (copy.numpy() for copy in variable.value.values)
        np.testing.assert_array_equal(one, two)
    assert not np.isfinite(variables.generator.trainable_variables[3].numpy()).any()


def test_weights_that_are_not_finite_stop_the_run(tiny, run, monkeypatch):
    """Checks batch-norm statistics: they have no gradient and do not affect the training losses."""
    real = run_module.compile_steps

    def make(config, devices, variables, *rest, **more):
        run_steps = real(config, devices, variables, *rest, **more)

        def with_bad_weight(count):
            statistics = variables.generator.non_trainable_variables[0]
            statistics.assign(tf.fill(statistics.shape, np.inf))
            return run_steps(count)

        return with_bad_weight

    monkeypatch.setattr(run_module, "compile_steps", make)
    config = tiny(recipe="mlp", length=steps(2), max_rollbacks=0)
    with pytest.raises(DivergedError, match=r"diverged: Weights of generator not finite in steps"):
        run(config)


def test_overflow_of_a_scaled_gradient_is_not_divergence():
    names = ("d_loss", "d_grad_norm", "g_grad_norm", "d_loss_scale", "g_loss_scale")
    skipped = np.array([[1, np.inf, np.nan, 1024, 2]])
    check_finite(skipped, names, 10)
    with pytest.raises(NotFiniteError, match="g_grad_norm not finite at step 11"):
        check_finite(np.array([[1, 1, np.nan, 1024, 1]]), names, 10)
    with pytest.raises(NotFiniteError, match="d_loss, d_grad_norm not finite at step 12"):
        check_finite(np.array([[1, 1], [np.nan, np.nan]]), names[:2], 10)


def test_collapsed_run_warns_and_stops_with_stop_on_collapse(tiny, run, tmp_path):
    given = dict(recipe="dcgan", g_lr=0.0, collapse_kimg=0.02, sample_every=steps(1))
    # A generator that does not learn keeps generating nearly gray images.
    config = tiny(**given, length=steps(8), log_every_steps=1)
    output = run(config)
    assert "WARNING: This looks like collapse: the samples are all alike, since 0 kimg" in output
    lines = records(config.run_dir)
    assert lines[-1]["step"] == 8
    assert lines[-1]["collapse"] == 1.0
    assert lines[-1]["sample_diversity"] < 0.1
    assert "collapse" not in lines[0]
    stopping = config.replace(
        run_dir=str(tmp_path / "stopping"), length=steps(800), stop_on_collapse=True
    )
    with pytest.raises(DivergedError, match=r"Collapsed by step \d+: the samples are all alike"):
        run(stopping)
    assert list_checkpoints(RunDir(Path(stopping.run_dir)).checkpoints)


def test_changed_data_are_an_error_unless_accepted(tiny, run, tmp_path):
    path = tmp_path / "set.npz"
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    config = tiny(recipe="mlp", dataset=str(path), length=steps(2))
    np.savez(path, x=images[:28])
    run(config)
    np.savez(path, x=images)
    with pytest.raises(
        CheckpointError,
        match=r"it has 30 images \(.* and had 28 \(.* Use --accept_changed_data",
    ):
        run(config.replace(length=steps(4)))
    output = run(config.replace(length=steps(4)), accept_changed_data=True)
    assert f"WARNING: --dataset={path} has changed since the run" in output
    assert "Resuming from" in run(config.replace(length=steps(5)))
    np.savez(path, x=images.repeat(2, 1).repeat(2, 2))
    larger = config.replace(length=steps(6))
    with pytest.raises(CheckpointError, match="shape or classes differ"):
        run(larger, accept_changed_data=True)


ENDLESS_DEVICE_CALL = """
import pathlib, sys, time
from trainer.machine import signals
from trainer.run_dir.events import EventLog
signals.RECORD_SECS = 20.0  # the machine of a test may be busy
stop = signals.StopRequest()
log = EventLog(pathlib.Path(sys.argv[2]))
stop.allow_graceful_stop(float(sys.argv[1]), record_end=log.add_end)
import tensorflow as tf

@tf.function
def spin():  # a device call that never returns
    k = tf.constant(0, tf.int64)
    while k < 10**15:
        k += 1
    return k

print("spinning", flush=True)
spin()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("times", [1, 2])
def test_signals_stop_a_process_in_an_endless_device_call(tmp_path, number, times):
    grace = 1 if times == 1 else 60
    (tmp_path / "config.json").touch()
    script = tmp_path / "endless.py"  # a file, because TensorFlow reads the source of spin
    script.write_text(ENDLESS_DEVICE_CALL)
    process = subprocess.Popen(
        [sys.executable, str(script), str(grace), str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    time.sleep(1)
    began = time.monotonic()
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.2)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert time.monotonic() - began < 30
    how = "without a save: not done within 1 s." if times == 1 else "by a second signal, without"
    assert how in errors
    assert "Running the same command again resumes from the last checkpoint." in errors
    (event,) = read_newest(tmp_path, 5)
    assert (event["event"], event["code"]) == ("stop", 128 + number)
    assert event["reason"] in errors


def test_run_fails_if_its_last_checkpoint_cannot_be_saved(tiny, run, monkeypatch):
    real = Checkpoints.save

    def save(self, step):
        if step:
            raise OSError(28, "No space left on device")
        real(self, step)

    monkeypatch.setattr(Checkpoints, "save", save)
    config = tiny(recipe="mlp", length=steps(2))
    with pytest.raises(StorageError, match=r"end .* not be saved\. .* resumes from step 0"):
        run(config)
    assert not RunDir(Path(config.run_dir)).generator.exists()
    monkeypatch.undo()
    assert "Resuming from" in run(config)
    assert list_checkpoints(RunDir(Path(config.run_dir)).checkpoints)[0].name == "ckpt-2"


def test_fresh_renames_the_previous_run_only_for_a_valid_command(tiny, run, tmp_path):
    config = tiny(recipe="mlp", length=steps(1))
    run(config)
    with pytest.raises(CheckpointError):
        run(config.replace(g_lr=1e-3))
    with pytest.raises(UsageError, match="cannot be divided among"):
        run(config.replace(batch_size=9, devices="cpu:2"), fresh=True)
    assert (tmp_path / "run" / "config.json").exists()  # an invalid command renames nothing
    run(config.replace(g_lr=1e-3), fresh=True)
    assert (tmp_path / "run.old-1" / "config.json").exists()
