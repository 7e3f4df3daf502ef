"""Starts small real runs and reads their files; shared by the tests of many packages."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.config.settings import Duration
from trainer.data import sources
from trainer.machine import replicas
from trainer.run_dir.checkpoint_files import list_checkpoints
from trainer.training import feed, state
from trainer.training.compiled_steps import compile_steps

DATA_DIR = os.environ.get("TRAINER_DATA_DIR", "")
STEPS = 4
# Settings that shrink the networks of every recipe, so that a step takes milliseconds.
TINY = dict(g_width=0.05, d_width=0.05, batch_size=8, sample_grid=2, devices="cpu:1")
TINY_FLAGS = ["--g_width=0.05", "--d_width=0.05", "--batch_size=8", "--sample_grid=2"]


def variables(run_dir: str | Path) -> dict:
    """Returns the values in a run's newest checkpoint by name, without the number of saves."""
    reader = tf.train.load_checkpoint(str(list_checkpoints(Path(run_dir) / "checkpoints")[0]))
    return {
        name: reader.get_tensor(name)
        for name in sorted(reader.get_variable_to_shape_map())
        if name.endswith("VARIABLE_VALUE") and not name.startswith("save_counter")
    }


def records(run_dir) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps(count):
    """Returns a length or interval of `count` steps."""
    return Duration(count, "steps")


class Process:
    """A training process whose output is read while it runs.

    Attributes:
      output: what it has printed so far, including standard error.
    """

    def __init__(self, folder: Path, *arguments: str, run_dir="run"):
        command = [sys.executable, "-m", "trainer", "train", f"--run_dir={run_dir}", *arguments]
        self.began = time.monotonic()
        self.popen = subprocess.Popen(
            command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "TRAINER_DATA_DIR": ""},
        )  # fmt: skip
        self.output = ""
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.popen.stdout:
            self.output += line
            self._lines.put(line)

    def wait_for(self, text: str):
        """Waits for a line that contains `text` and returns it."""
        deadline = time.monotonic() + 120
        while True:
            # Checked before the queue is read: once the process has ended, no lines are added.
            ended = self.popen.poll() is not None
            try:
                line = self._lines.get(timeout=0.5)
            except queue.Empty:
                assert not ended, self.output
                assert time.monotonic() < deadline, self.output
                continue
            if text in line:
                return line

    def wait(self, timeout=300) -> int:
        """Waits until the process exits and returns its exit code."""
        code = self.popen.wait(timeout)
        time.sleep(0.2)  # lets the thread read the last lines
        return code


def assert_same_run(one: Path, other: Path) -> None:
    """Asserts that two runs have equal variables, metrics (except times) and sample images."""
    expected, actual = variables(one), variables(other)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
    timings = {"secs", "images_per_sec", "utilisation", "data_wait", "time", "memory_gib"}
    for line, other_line in zip(records(one), records(other), strict=True):
        assert {k: v for k, v in line.items() if k not in timings} == {
            k: v for k, v in other_line.items() if k not in timings
        }
    names = sorted(path.name for path in (one / "samples").iterdir())
    assert names == sorted(path.name for path in (other / "samples").iterdir())
    for path in [*(f"samples/{name}" for name in names), "training.gif"]:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path


def trajectory(config, steps=STEPS):
    """Trains for `steps` steps and returns the metrics [steps, M] and the TrainState."""
    data = sources.load(config)
    config = config.with_spans_in_kimg(len(data))
    devices = replicas.create_replicas(config)
    with devices.scope():
        variables = state.create_state(config, data.shape, devices.precision)
    resident = feed.resident_images(config, data, devices)
    source = feed.open_feed(config, data, devices, first_step=0, resident=resident)
    run_steps = compile_steps(config, devices, variables, source, xla=config.xla == "on")
    return run_steps(steps), variables


def weights(network):
    """Returns all trainable variables of a network as one vector."""
    return np.concatenate([v.numpy().ravel() for v in network.trainable_variables])
