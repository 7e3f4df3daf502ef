"""Real runs, small: tiny networks on the embedded digits, on two logical CPUs."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
DATA_DIR = os.environ.get("TRAINER_DATA_DIR", "")

import keras
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)

from trainer import recipes
from trainer.config import Config
from trainer.console import Console
from trainer.data import sources
from trainer.train import train

# Small enough for a step in milliseconds; every recipe's networks shrink by them.
TINY = dict(g_width=0.05, d_width=0.05, batch_size=8, sample_grid=2, devices="cpu:1")


@pytest.fixture(autouse=True)
def _float32():
    """Each test begins in Keras's own number format, whatever ran before."""
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def tiny(tmp_path):
    """Makes the configuration of a tiny run."""

    def make(**given) -> Config:
        return recipes.resolve({**TINY, "run_dir": str(tmp_path / "run"), **given})

    return make


@pytest.fixture
def run():
    """Trains a configuration in this process and returns what it printed."""

    def train_here(config: Config, stop_requested=lambda: False, **options) -> str:
        stream = io.StringIO()
        from trainer.console import log_to

        terminal = Console(stream)
        log_to(terminal)
        data = sources.load(config)
        config = sources.settle(config, data)
        train(config, data, terminal=terminal, stop_requested=stop_requested, **options)
        return stream.getvalue()

    return train_here


@pytest.fixture
def trainer(tmp_path):
    """Runs the command line in a process of its own, in an empty folder."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "trainer", *arguments],
            cwd=tmp_path,
            # Real data are for the tests that ask for them.
            env={**os.environ, "TRAINER_DATA_DIR": "", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


@pytest.fixture
def data_dir() -> str:
    """The folder of real data sets, where there is one."""
    if not DATA_DIR:
        pytest.skip("TRAINER_DATA_DIR names no folder of real data sets")
    return DATA_DIR


def variables(run_dir: str | Path) -> dict:
    """All that the newest checkpoint of a run holds, by name, but the number of saves."""
    from trainer.checkpoint import found

    reader = tf.train.load_checkpoint(str(found(Path(run_dir) / "checkpoints")[0]))
    return {
        name: reader.get_tensor(name)
        for name in sorted(reader.get_variable_to_shape_map())
        if name.endswith("VARIABLE_VALUE") and not name.startswith("save_counter")
    }
