"""The watchdog of the training steps, and of the exchanges between workers."""

import contextlib
import json
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest

from trainer.errors import ExitCode
from trainer.machine.replicas import Replicas
from trainer.machine.watchdog import HELPER, no_late_end
from trainer.reporting.phases import COMPILING, TRAINING, WAITING, Phases
from trainer.run_dir import events
from trainer.training.step_watchdog import StepWatchdog

# A call that holds the interpreter lock for ever, as C++ may.
HANGING = """
import ctypes, pathlib, sys
from trainer.machine import replicas, watchdog
from trainer.reporting.phases import Phases
from trainer.run_dir.events import EventLog
from trainer.training.step_watchdog import StepWatchdog
replicas.Replicas.num_replicas = 2
replicas.PATIENT_SECS = 1.0
watchdog.HELPER = watchdog.HELPER.replace("join(1)", "join(30)")  # the machine may be busy
run = pathlib.Path(sys.argv[1])
two = replicas.Replicas(None, ("CPU:0",), "float32", True, num_workers=2, worker_index=1)
hang = lambda *arguments: ctypes.PyDLL(None).sleep(60)
with two.watched(1.0, EventLog(run, 1).late_end) as watched:
    watched.__dict__["_sum"] = hang
    steps = StepWatchdog(1.0, Phases(), watched.limited, lambda: "Resumes from step 4.")
    steps = steps.run_steps(lambda count: hang() if count == 4 else begin())
    begin = (run / "config.json").touch  # the run begins in the first call
    steps(2)
    {call}
"""
CALLS = {  # what hangs, and what the message says
    "steps(4)": ("the call of the training steps did not end within 1 s. Resumes from step 4."),
    "watched.leave()": (
        "the exchange with the other workers did not end within 1 s. Running the same command "
        "again resumes the run from its last checkpoint."
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_hangs_ends_the_process_and_records_why(call, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HANGING.format(call=call), str(tmp_path)],
        text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == ExitCode.STOPPED, done.stderr
    assert done.stderr.splitlines()[-1] == f"Stopped: {CALLS[call]}"
    (event,) = events.read_newest(tmp_path, 5)
    assert (event["event"], event["code"], event["worker"]) == ("stop", ExitCode.STOPPED, 1)
    assert event["reason"] == f"Stopped: {CALLS[call]}"
    assert {"time", "host", "process", "trainer"} <= event.keys()


@pytest.mark.parametrize("is_run", [True, False])
def test_the_helper_records_an_end_after_a_torn_line_but_only_if_there_is_a_run(tmp_path, is_run):
    torn = '{"time": "2026-01-01T00:'
    (tmp_path / events.NAME).write_text(torn)
    if is_run:
        (tmp_path / "config.json").touch()
    news = {
        "reason": "It hung.",
        **events.EventLog(tmp_path).late_end(ExitCode.STOPPED, "It hung."),
    }
    done = subprocess.run(
        [sys.executable, "-ISc", HELPER.replace("join(1)", "join(30)"), "0"],
        input=f"{json.dumps(news)}\nTimeout\n", text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == "It hung.\n"
    assert [event["event"] for event in events.read_newest(tmp_path, 5)] == ["stop"] * is_run
    assert (tmp_path / events.NAME).read_text().startswith(torn)


def test_a_wait_for_the_work_of_others_is_never_shorter_than_a_step(monkeypatch):
    monkeypatch.setattr(Replicas, "num_replicas", 2)
    for timeout, secs in ((600.0, 7200.0), (9000.0, 9000.0)):
        with Replicas(None, ("CPU:0",), "float32", True).watched(timeout, no_late_end) as watched:
            limit = Mock(return_value=contextlib.nullcontext())
            monkeypatch.setattr(watched.watchdog, "limit", limit)
            with watched.limited("it"):
                assert limit.call_args.args[0] == secs


@pytest.mark.parametrize("is_chief", [False, True])
def test_compiling_and_the_work_of_the_chief_may_take_longer(is_chief):
    limits = []

    def limited(what, secs, resumes):
        limits.append(secs)
        return contextlib.nullcontext()

    phases = Phases()
    phases.enter(COMPILING)
    watchdog = StepWatchdog(5.0, phases, limited, is_chief=is_chief)
    steps = watchdog.run_steps(lambda count: np.zeros([count, 1]))
    phases_of_agree = []
    agree = watchdog.agree(lambda count, stop: phases_of_agree.append(phases.name) or (count, stop))
    save = watchdog.action("saving", lambda step: phases.name == "saving")
    agree(0, False)
    steps(0)
    assert phases.name == COMPILING
    steps(1)
    assert phases.name == TRAINING
    steps(9)
    assert save(10)
    for _ in range(2):
        assert agree(3, False) == (3, False)
    # The other workers wait while the chief saves, and it waits for none of them then.
    assert limits == [None, None, None, 5.0, 5.0 if is_chief else None, 5.0]
    assert phases_of_agree == [COMPILING, TRAINING if is_chief else WAITING, TRAINING]
    assert phases.name == TRAINING


@pytest.mark.parametrize(("count", "secs"), [(1, 600.0), (2, 0.0)])
def test_one_cpu_and_runs_without_a_limit_have_no_helper_process(monkeypatch, count, secs):
    monkeypatch.setattr(Replicas, "num_replicas", count)
    replicas = Replicas(None, ("CPU:0",), "float32", True)
    with replicas.watched(secs, no_late_end) as watched, watched.limited("nothing"):
        assert watched.watchdog is None
