"""Real runs, small: tiny networks on the embedded digits, on two logical CPUs."""

import io
import os
import subprocess
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)

from tests.helpers.runs import DATA_DIR, TINY
from trainer import recipes
from trainer.config import Config
from trainer.data import sources
from trainer.reporting.console import Console
from trainer.train import train


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
        from trainer.reporting.console import log_to

        terminal = Console(stream)
        log_to(terminal)
        data = sources.load(config)
        config = sources.resolve_conditional(config, data)
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
