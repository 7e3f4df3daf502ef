"""XLA: results equal those without it, and --xla=auto uses it if it is faster."""

import json
import logging

import numpy as np
import pytest
import tensorflow as tf

from trainer.config.settings import Duration
from trainer.errors import NotFiniteError, UsageError
from trainer.machine.replicas import Replicas
from trainer.training import xla


def test_run_with_xla_is_the_same_up_to_rounding(trainer, tmp_path):
    rows = {}
    for choice in ("off", "on"):
        result = trainer(
            "train", "--recipe=mlp", "--batch_size=8", "--steps=2", f"--xla={choice}",
            "--devices=cpu:1", "--g_width=0.05", "--d_width=0.05", "--log_every_steps=1",
            f"--run_dir={choice}",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        lines = (tmp_path / choice / "metrics.jsonl").read_text().splitlines()
        names = ("d_loss", "g_loss", "d_grad_norm")
        rows[choice] = np.array([[json.loads(line)[name] for name in names] for line in lines])
    np.testing.assert_allclose(rows["on"], rows["off"], rtol=1e-3)
    assert (rows["on"] != rows["off"]).any()  # rounding differs, so XLA was used


def is_faster(monkeypatch, *, gain=2.0, error=None):
    """Returns the result of xla.is_faster if XLA speeds up steps by `gain` or raises `error`."""
    clock, counter = [0.0], tf.Variable(5)
    monkeypatch.setattr(xla.time, "perf_counter", lambda: clock[0])

    def make():
        def run_steps(steps):
            on = bool(tf.config.optimizer.get_jit())
            counter.assign_add(steps)
            clock[0] += steps / (gain if on else 1.0)
            if on and error is not None:
                raise error

        return run_steps

    try:
        return xla.is_faster(make, [counter])
    finally:
        assert counter.numpy() == 5
        xla.switch(False)


def test_faster_choice_is_returned_and_variables_are_restored(monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        assert is_faster(monkeypatch)
    assert "XLA makes steps 2.00 times as fast: on" in caplog.text
    assert not is_faster(monkeypatch, gain=0.5)


@pytest.mark.parametrize(
    "error",
    [
        UsageError("The device's memory is too small."),
        NotFiniteError("d_loss is nan"),
        tf.errors.InternalError(None, None, "libdevice not found\nat all"),
    ],
)
def test_xla_is_off_if_compiling_fails(monkeypatch, caplog, error):
    assert not is_faster(monkeypatch, error=error)
    assert f"XLA cannot compile the steps: {str(error).splitlines()[0]}" in caplog.text


@pytest.mark.parametrize(
    ("on_gpus", "settings", "is_tried"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"deterministic": True, "devices": "cpu:1"}, False),
        (True, {"devices": "cpu:2"}, False),
    ],
)
def test_xla_is_tried_only_on_one_gpu_without_determinism(
    tiny, run, monkeypatch, on_gpus, settings, is_tried
):
    monkeypatch.setattr(Replicas, "is_on_gpus", on_gpus)
    calls = []
    monkeypatch.setattr(xla, "is_faster", lambda *arguments: bool(calls.append(arguments)))
    length = Duration(1, "steps")
    config = tiny(**{"recipe": "mlp", "deterministic": False, "length": length, **settings})
    run(config)
    assert len(calls) == is_tried
