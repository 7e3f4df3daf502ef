"""XLA: the same run, and the choice of what is faster."""

import json
import logging

import numpy as np
import pytest
import tensorflow as tf

from trainer import xla
from trainer.errors import UsageError


def test_a_run_with_xla_is_the_same_up_to_rounding(trainer, tmp_path):
    rows = {}
    for choice in ("off", "on"):
        answer = trainer(
            "train", "--recipe=mlp", "--batch_size=8", "--steps=2", f"--xla={choice}",
            "--devices=cpu:1", "--g_width=0.05", "--d_width=0.05", "--log_every_steps=1",
            f"--run_dir={choice}",
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        lines = (tmp_path / choice / "metrics.jsonl").read_text().splitlines()
        names = ("d_loss", "g_loss", "d_grad_norm")
        rows[choice] = np.array([[json.loads(line)[name] for name in names] for line in lines])
    np.testing.assert_allclose(rows["on"], rows["off"], rtol=1e-3)
    assert (rows["on"] != rows["off"]).any()  # it was compiled otherwise


@pytest.fixture
def counter():
    return tf.Variable(5)


def choose(counter, monkeypatch, *, fails=False, gain=2.0, choice="auto", may_try=True):
    """What is chosen where XLA makes steps so much faster; returns the final mode."""
    clock = [0.0]
    monkeypatch.setattr(xla.time, "perf_counter", lambda: clock[0])

    def make():
        on = bool(tf.config.optimizer.get_jit())

        def advance(steps):
            counter.assign_add(steps)
            clock[0] += steps / (gain if on else 1.0)
            if on and fails:
                raise UsageError("The device's memory is too small.")
            return on

        return advance

    try:
        advance = xla.compiled(
            choice, make, variables=[counter], may_try=may_try, agree=lambda n, stop: (n, stop)
        )
        assert counter.numpy() == 5
        return advance(1)
    finally:
        tf.config.optimizer.set_jit(False)


def test_what_is_faster_is_chosen_and_nothing_else_changes(counter, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        assert choose(counter, monkeypatch)
    assert "XLA: 2.00 times as fast in 30 steps: on" in caplog.text


def test_what_is_slower_or_does_not_compile_is_not(counter, monkeypatch, caplog):
    assert not choose(counter, monkeypatch, gain=0.5)
    counter.assign(5)
    assert not choose(counter, monkeypatch, fails=True)
    assert "XLA cannot compile the steps: The device's memory is too small." in caplog.text


def test_nothing_is_tried_where_bits_must_stay(counter, monkeypatch):
    assert not choose(counter, monkeypatch, may_try=False)
    counter.assign(5)
    assert choose(counter, monkeypatch, choice="on")
