"""Small real runs, and what they leave: shared by the tests of many packages."""

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
from trainer.data import pipeline, sources
from trainer.machine import replicas
from trainer.run_dir.checkpoint_files import list_checkpoints
from trainer.training import state, step
from trainer.training.compiled_steps import compile_steps

DATA_DIR = os.environ.get("TRAINER_DATA_DIR", "")
STEPS = 4
# Small enough for a step in milliseconds; every recipe's networks shrink by them.
TINY = dict(g_width=0.05, d_width=0.05, batch_size=8, sample_grid=2, devices="cpu:1")
TINY_FLAGS = ["--g_width=0.05", "--d_width=0.05", "--batch_size=8", "--sample_grid=2"]


def variables(run_dir: str | Path) -> dict:
    """All that the newest checkpoint of a run holds, by name, but the number of saves."""
    reader = tf.train.load_checkpoint(str(list_checkpoints(Path(run_dir) / "checkpoints")[0]))
    return {
        name: reader.get_tensor(name)
        for name in sorted(reader.get_variable_to_shape_map())
        if name.endswith("VARIABLE_VALUE") and not name.startswith("save_counter")
    }


def records(run_dir) -> list[dict]:
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps(count):
    return Duration(count, "steps")


class Process:
    """A real training process, whose lines are read as they come."""

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
        deadline = time.monotonic() + 120
        while True:
            ended = self.popen.poll() is not None  # before the queue: nothing follows its lines
            try:
                line = self._lines.get(timeout=0.5)
            except queue.Empty:
                assert not ended, self.output
                assert time.monotonic() < deadline, self.output
                continue
            if text in line:
                return line

    def end(self, timeout=300) -> int:
        code = self.popen.wait(timeout)
        time.sleep(0.2)  # for the last lines
        return code


def assert_same_run(one: Path, other: Path) -> None:
    """Every variable, every line of the record, every picture."""
    expected, got = variables(one), variables(other)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    clocks = {"secs", "images_per_sec", "utilisation", "data_wait", "time", "memory_gib"}
    for line, same in zip(records(one), records(other), strict=True):
        assert {k: v for k, v in line.items() if k not in clocks} == {
            k: v for k, v in same.items() if k not in clocks
        }
    names = sorted(path.name for path in (one / "samples").iterdir())
    assert names == sorted(path.name for path in (other / "samples").iterdir())
    for path in [*(f"samples/{name}" for name in names), "training.gif"]:
        assert (one / path).read_bytes() == (other / path).read_bytes(), path


def trajectory(config, steps=STEPS):
    """Trains some steps; returns the metrics [steps, M] and the state."""
    data = sources.load(config)
    devices = replicas.create_replicas(config)
    with devices.scope():
        variables = state.create_state(config, data.shape, devices.precision)
    plan = pipeline.BatchPlan(
        seed=config.seed,
        batch_size=config.batch_size,
        batches_per_step=step.real_batches_per_step(config),
    )
    batches = devices.make_iterator(
        lambda replicas: pipeline.batches(
            data, plan, replicas=replicas, num_replicas=devices.num_replicas
        )
    )
    run_steps = compile_steps(
        config, devices, variables, data.shape.classes, lambda k: next(batches)
    )
    return run_steps(steps), variables


def weights(network):
    return np.concatenate([v.numpy().ravel() for v in network.trainable_variables])
