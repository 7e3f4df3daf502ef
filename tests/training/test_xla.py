"""XLA: results equal those without it, and --xla=auto uses it if it is faster."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.runs import TINY_FLAGS, records, steps, trajectory
from trainer.errors import NotFiniteError, UsageError
from trainer.machine import program
from trainer.machine.replicas import Replicas
from trainer.run_dir.directory import RunDir
from trainer.training import xla
from trainer.training.run import Run

LOGGED = [0, 1, 5]  # columns of `logged` among the metrics of a step


def logged(run_dir):
    """Returns the losses and the norm of D's gradient in a run's lines, [lines, 3]."""
    names = ("d_loss", "g_loss", "d_grad_norm")
    return np.array([[line[name] for name in names] for line in records(run_dir)])


@pytest.mark.parametrize(
    "settings",
    [
        {"recipe": "dcgan", "precision": "bfloat16", "length": steps(1)},
        {
            "recipe": "mlp", "loss": "relativistic", "r1": 1.0, "gradient_penalty": 1.0,
            "penalty_every": 2, "augment": "diffaugment", "batch_per_replica": 4,
            "data_on_device": "on", "length": steps(2),
        },
    ],
    ids=["convolutions", "penalties"],
)  # fmt: skip
def test_whole_steps_compiled_by_xla_draw_the_same_numbers(tiny, run, monkeypatch, settings):
    graphs = []
    real = program.call_compiled

    def call(*arguments):
        result = real(*arguments)
        graphs.extend(program.graphs_of(tf.compat.v1.get_default_graph()))
        return result

    monkeypatch.setattr(program, "call_compiled", call)
    config = tiny(xla="on", log_every_steps=1, **settings)
    run(config)
    (graph,) = graphs
    off = trajectory(config.replace(xla="off"), steps=int(config.length.value))[0]
    tolerance = 1e-3 if "precision" not in settings else 0.05
    np.testing.assert_allclose(logged(config.run_dir)[:, :2], off[:, :2], rtol=tolerance)
    called = graph.as_graph_def().library.function  # such as the branch of rare penalties
    kinds = {operation.type for operation in graph.get_operations()}
    kinds |= {node.op for function in called for node in function.node_def}
    assert "ResourceApplyAdam" in kinds  # the update is in the program, too
    assert not any(kind.startswith("StatelessRandom") for kind in kinds)


def test_groups_of_operations_are_compiled_on_two_devices(tiny, trainer, tmp_path):
    # In a process of its own, because TensorFlow reads the flag that XLA needs on CPUs only once.
    flags = ["--recipe=mlp", "--devices=cpu:2", "--steps=2", "--log_every_steps=1", *TINY_FLAGS]
    result = trainer("train", "--xla=on", "--data_on_device=on", "--run_dir=run", *flags)
    assert result.returncode == 0, result.stderr
    off = trajectory(tiny(recipe="mlp", devices="cpu:2"), steps=2)[0][:, LOGGED]
    on = logged(tmp_path / "run")
    np.testing.assert_allclose(on, off, rtol=1e-3)
    assert (on.astype(np.float32) != off).any()  # rounding differs, so XLA was used


class Trial:
    """Steps whose durations are set, of which those with XLA may raise an error."""

    def __init__(self, monkeypatch, *, gain=2.0, error=None):
        self.calls, self.counter = [], tf.Variable(5)
        self._clock, self._gain, self._error = 0.0, gain, error
        monkeypatch.setattr(xla.time, "perf_counter", lambda: self._clock)

    def make(self, on):
        def run_steps(steps):
            self.counter.assign_add(steps)
            secs = 0.001 * steps / (self._gain if on else 1.0)
            self.calls.append((on, secs))
            self._clock += secs
            if on and self._error is not None:
                raise self._error

        return run_steps

    def decide(self, path, **circumstances):
        return xla.decide(path, circumstances, self.make, [self.counter])


def test_faster_choice_is_measured_in_turn_for_a_second_each(monkeypatch, caplog, tmp_path):
    trial = Trial(monkeypatch)
    with caplog.at_level(logging.INFO):
        assert trial.decide(tmp_path / "xla.json")
    assert "XLA: on, 2.00 times as fast" in caplog.text
    assert trial.counter.numpy() == 5
    measured = trial.calls[-20:]
    assert [on for on, _ in measured] == [False, True] * 10
    for kind in (False, True):
        longest = max(secs for _, secs in trial.calls)
        assert sum(secs for on, secs in trial.calls if on == kind and secs >= longest / 3) >= 1.0
    assert not Trial(monkeypatch, gain=1.02).decide(tmp_path / "other.json")


def test_decision_is_kept_on_the_same_hardware_only(monkeypatch, tmp_path):
    path = tmp_path / "xla.json"
    assert Trial(monkeypatch).decide(path, devices=["GPU:0 T4"])
    again = Trial(monkeypatch, gain=0.5)
    assert again.decide(path, devices=["GPU:0 T4"])
    assert not again.calls
    assert not again.decide(path, devices=["GPU:0 V100"])
    assert not Trial(monkeypatch).decide(path, devices=["GPU:0 V100"])
    path.write_text("{")
    assert Trial(monkeypatch).decide(path, devices=["GPU:0 V100"])


@pytest.mark.parametrize(
    "error",
    [
        UsageError("The device's memory is too small."),
        NotFiniteError("d_loss is nan"),
        tf.errors.InternalError(None, None, "libdevice not found\nat all"),
    ],
)
def test_xla_is_off_if_compiling_fails(monkeypatch, caplog, tmp_path, error):
    trial = Trial(monkeypatch, error=error)
    assert not trial.decide(tmp_path / "xla.json")
    assert f"XLA cannot compile the steps: {str(error).splitlines()[0]}" in caplog.text
    assert trial.counter.numpy() == 5


@pytest.mark.parametrize(
    ("kind", "count", "choice", "deterministic", "is_tried"),
    [
        ("GPU", 1, "auto", False, True),
        ("GPU", 1, "on", False, False),
        ("CPU", 1, "auto", False, False),
        ("GPU", 1, "auto", True, False),
        ("GPU", 2, "auto", False, False),
    ],
)
def test_xla_is_tried_only_on_one_gpu_without_determinism(
    tiny, monkeypatch, tmp_path, kind, count, choice, deterministic, is_tried
):
    calls = []
    monkeypatch.setattr(xla, "decide", lambda *arguments: bool(calls.append(arguments)))
    names = tuple(f"{kind}:{k}" for k in range(count))
    replicas = Replicas(
        SimpleNamespace(num_replicas_in_sync=count), names, "float32", deterministic
    )
    started = Run(
        config=tiny(xla=choice, length=steps(1)),
        data=range(10),
        replicas=replicas,
        state=SimpleNamespace(steps_done=lambda _: 0, all_variables=list),
        outputs=SimpleNamespace(run_dir=RunDir(tmp_path)),
        upkeep=None,
        phases=None,
    )
    assert started.with_xla == (choice == "on")
    assert len(calls) == is_tried
