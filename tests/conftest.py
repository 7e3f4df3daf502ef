"""Fixtures for small real runs: tiny networks, the embedded digits and four logical CPUs."""

import io
import os
import subprocess

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests run on the CPU, also where there is a GPU. TensorFlow reads this when it initializes, and
# the processes that tests start inherit it.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)

from tests.helpers import fake_gcs
from tests.helpers.forked import Launcher
from tests.helpers.runs import DATA_DIR, TINY
from trainer import recipes
from trainer.assembly import StartOptions, train
from trainer.config import Config
from trainer.data import sources
from trainer.reporting.console import Console
from trainer.reporting.control import Control
from trainer.reporting.phases import Phases
from trainer.reporting.prometheus import Telemetry
from trainer.storage.start import Start


@pytest.fixture(autouse=True)
def _float32():
    """Resets Keras's data type policy, which an earlier test may have changed."""
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def tiny(tmp_path):
    """Returns a function that builds the configuration of a tiny run."""

    def make(**settings) -> Config:
        return recipes.resolve({**TINY, "run_dir": str(tmp_path / "run"), **settings})

    return make


@pytest.fixture
def gcs(monkeypatch):
    """Starts a server of buckets, which the library uses instead of the service."""
    world = fake_gcs.Server()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", world.url)
    yield world
    world.close()


@pytest.fixture
def run():
    """Returns a function that trains a configuration in this process and returns its output."""

    def train_here(config: Config, stop_requested=lambda: False, **options) -> str:
        Start(config=config).check_destinations()
        stream = io.StringIO()
        from trainer.reporting.console import log_to

        terminal = Console(stream)
        log_to(terminal)
        data = sources.load(config)
        config = sources.resolve_conditional(config, data)
        labels, phases = {"run": config.run_dir, "worker": "0"}, Phases()
        control = Control(
            terminal=terminal, stop_requested=stop_requested, phases=phases,
            telemetry=Telemetry(config.metrics_port, labels, phases=phases),
        )  # fmt: skip
        train(config, data, control, options=StartOptions(**options))
        return stream.getvalue()

    return train_here


@pytest.fixture(scope="session")
def launcher():
    """Starts the process from which the commands of tests are forked."""
    started = Launcher()
    yield started
    started.close()


@pytest.fixture
def trainer(launcher, tmp_path):
    """Returns a function that runs the trainer in a separate process and an empty folder."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        # Only tests that use the fixture data_dir read real data sets.
        env = {**os.environ, "TRAINER_DATA_DIR": "", **environment}
        return launcher.run(arguments, cwd=tmp_path, env=env, timeout=120)

    return call


@pytest.fixture
def data_dir() -> str:
    """Returns the folder of real data sets; skips the test if there is none."""
    if not DATA_DIR:
        pytest.skip("TRAINER_DATA_DIR names no folder of real data sets")
    return DATA_DIR
