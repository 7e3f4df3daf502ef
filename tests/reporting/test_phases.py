"""The phases of a process, and the heartbeat in each of them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.runs import TINY_FLAGS
from trainer.errors import ExitCode, SignalledError
from trainer.reporting.console import Console
from trainer.reporting.control import Control
from trainer.reporting.heartbeat import Heartbeat, check_age
from trainer.reporting.phases import DEADLINES, TRAINING, Phases


def beats(path, secs=0.3):
    """Returns whether the file is written again within some seconds."""
    path.unlink(missing_ok=True)
    deadline = time.monotonic() + secs
    while time.monotonic() < deadline and not path.exists():
        time.sleep(0.01)
    return path.exists()


def test_a_thread_beats_up_to_the_deadline_but_not_while_the_run_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.reporting.heartbeat.PACE_SECS", 0.0)
    now, path = [0.0], tmp_path / "beat"
    with Phases(Heartbeat(str(path)), clock=lambda: now[0]).shown(pace_secs=0.02) as phases:
        assert beats(path)
        assert check_age(path, 60.0).endswith("s old (starting)")
        phases.enter("compiling")
        now[0] += DEADLINES["compiling"] - 1
        assert beats(path)
        now[0] += 1
        assert not beats(path)
        phases.progress(7)  # a sign of progress begins the phase anew
        assert json.loads(path.read_text())["step"] == 7
        assert beats(path)
        phases.enter(TRAINING)
        assert not beats(path)
        with phases.during("saving"):
            assert beats(path)
        assert phases.name == TRAINING
    phases.enter("saving")
    assert not beats(path)  # the thread has ended


def test_a_stop_request_ends_a_start_at_its_next_phase():
    control = Control(terminal=Console(), stop_requested=lambda: control.phases.name == "reading")
    control.enter("reading")
    with pytest.raises(SignalledError, match=r"^Stopped on request while reading, before") as error:
        control.enter("restoring")
    assert error.value.exit_code == ExitCode.TERMINATED == 143


def test_the_heartbeat_begins_before_the_data_are_read_and_sigterm_there_ends_with_143(tmp_path):
    """The data set is a FIFO that nobody writes, so reading it takes for ever."""
    os.mkfifo(tmp_path / "set.zip")
    beat = tmp_path / "beat"
    command = [sys.executable, "-m", "trainer", "train", "--dataset=set.zip", "--run_dir=run"]
    process = subprocess.Popen(
        [*command, "--heartbeat=beat", "--grace_secs=1", *TINY_FLAGS], cwd=tmp_path, text=True,
        stderr=subprocess.PIPE, env={**os.environ, "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    )  # fmt: skip
    began = time.monotonic()
    while not beat.exists() or "reading" not in beat.read_text():
        assert process.poll() is None
        assert time.monotonic() - began < 20
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == ExitCode.TERMINATED, errors
    assert json.loads((tmp_path / "run" / "attempts.json").read_text()) == {
        "attempts": 1,
        "starts": 0,
    }
    assert not (tmp_path / "run" / "config.json").exists()
