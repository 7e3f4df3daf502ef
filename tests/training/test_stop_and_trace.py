"""The flags --max_hours and --profile."""

import contextlib
import functools
import io
import itertools
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.runs import variables
from trainer.config.compatibility import frozen_differences
from trainer.config.settings import Duration
from trainer.data import sources
from trainer.errors import ExitCode, StoppedError
from trainer.machine.signals import TimeLimit
from trainer.reporting.console import Console
from trainer.train import Control, train
from trainer.training import profiling


def steps(count):
    return Duration(count, "steps")


def test_run_stopped_by_max_hours_resumes(tiny, run, tmp_path):
    config = tiny(recipe="mlp", length=steps(12), max_hours=2.0)
    times = itertools.count(step=2500.0)  # exceeds the limit at the fourth reading

    def train_with_clock() -> None:
        data, terminal = sources.load(config), Console(io.StringIO())
        clock = functools.partial(next, times)
        train(config, data, Control(terminal=terminal, clock=clock))

    with pytest.raises(StoppedError, match="Stopped by --max_hours=2 after 1 of 12 steps") as end:
        train_with_clock()
    assert end.value.exit_code == ExitCode.STOPPED == 42
    assert (Path(config.run_dir) / "checkpoints" / "ckpt-1.index").exists()
    run(config.replace(max_hours=0.0))  # the setting may change on resuming; 0 means no limit
    uninterrupted = config.replace(run_dir=str(tmp_path / "uninterrupted"), max_hours=0.0)
    run(uninterrupted)
    expected, actual = variables(uninterrupted.run_dir), variables(config.run_dir)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_time_limit_gives_the_reason_of_a_stop():
    now, requested = [100.0], [False]
    limit = TimeLimit(0.5, lambda: requested[0], clock=lambda: now[0])
    endless = TimeLimit(0.0, lambda: requested[0], clock=lambda: now[0])
    now[0] += 1799
    assert not limit()
    now[0] += 1
    assert limit()
    assert limit.reason == "by --max_hours=0.5"
    now[0] += 1e9
    assert not endless()
    requested[0] = True
    assert endless()
    assert endless.reason == "on request"


def test_profile_writes_a_trace_without_changing_the_run(tiny, run, tmp_path):
    config = tiny(recipe="mlp", length=steps(14), log_every_steps=1, profile=3)
    output = run(config)
    folder = Path(config.run_dir) / "tensorboard"
    assert f"Traced steps 11 to 13 of this process: tensorboard --logdir={folder}" in output
    (trace,) = folder.glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000
    untraced = config.replace(profile=0, run_dir=str(tmp_path / "untraced"))
    assert not frozen_differences(config, untraced)
    assert "Traced" not in run(untraced)
    assert not list((tmp_path / "untraced" / "tensorboard").glob("plugins"))
    for name, value in variables(untraced.run_dir).items():  # tracing changes no variable
        np.testing.assert_array_equal(variables(config.run_dir)[name], value, err_msg=name)


@pytest.fixture
def events(monkeypatch):
    """Returns the list that records step counts and the starts and stops of the trace."""
    done = []
    profiler = profiling.tf.profiler.experimental
    monkeypatch.setattr(profiler, "start", lambda folder: done.append("start"))
    monkeypatch.setattr(profiler, "stop", lambda: done.append("stop"))
    return done


def make_run_steps(events):
    """Returns a function that stands for training steps and records their number."""

    def run_steps(count):
        events.append(count)
        return np.full((count, 2), len(events), np.float32)

    return run_steps


def test_calls_are_split_where_the_trace_starts_and_stops(events, tmp_path):
    with profiling.traced(make_run_steps(events), tmp_path, 5) as run_steps:
        shapes = [run_steps(count).shape for count in (0, 4, 30, 2)]
    assert shapes == [(0, 2), (4, 2), (30, 2), (2, 2)]
    assert events == [0, 4, 6, "start", 5, "stop", 19, 2]


def test_trace_stops_when_training_ends_early(events, tmp_path):
    with profiling.traced(make_run_steps(events), tmp_path, 5) as run_steps:
        run_steps(10)
        run_steps(2)
    assert events == [10, "start", 2, "stop"]
    events.clear()
    with (
        contextlib.suppress(ZeroDivisionError),
        profiling.traced(make_run_steps(events), tmp_path, 5) as run_steps,
    ):
        run_steps(12)
        raise ZeroDivisionError
    assert events == [10, "start", 2, "stop"]
    events.clear()
    with profiling.traced(make_run_steps(events), tmp_path, 5) as run_steps:
        run_steps(10)
    assert events == [10]


def test_profile_warns_if_the_run_is_too_short_to_trace(tiny, run):
    output = run(tiny(recipe="mlp", length=steps(2), profile=3))
    assert "WARNING: --profile=3 traced nothing: this process trained 2 steps" in output
