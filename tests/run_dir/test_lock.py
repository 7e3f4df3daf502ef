"""Tests of the lock on a run directory."""

import json
import subprocess
import sys
import time

import pytest

from trainer.errors import BusyError, ExitCode
from trainer.run_dir import lock
from trainer.run_dir.lock import Lock


class FakeClock:
    """A fake clock that sleeping advances; `on_sleep` is called at each sleep."""

    def __init__(self, on_sleep=lambda: None):
        self.now, self.on_sleep = 0.0, on_sleep

    def sleep(self, secs):
        self.now += secs
        self.on_sleep()

    def held(self, folder):
        return Lock(folder).held(sleep=self.sleep, clock=lambda: self.now)


def write_heartbeat(folder, **changes):
    """Writes the heartbeat of a holder on another machine."""
    path = folder / "lock.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    values = dict(token="0", host="elsewhere", boot="another", pid=1, since="noon", beats=1)
    path.write_text(json.dumps({**values, **old, **changes}))


def test_a_free_directory_is_locked_at_once_and_released(tmp_path):
    clock = FakeClock()
    with clock.held(tmp_path) as held:
        held.check_ownership()
        assert json.loads((tmp_path / "lock.json").read_text())["beats"] == 1
    assert clock.now == 0
    assert not (tmp_path / "lock.json").exists()


def test_a_second_job_waits_and_then_fails(tmp_path):
    clock = FakeClock()
    with (
        FakeClock().held(tmp_path),
        pytest.raises(BusyError, match=r"is held by process \d+ on .* since 20.*\. Wait") as error,
        clock.held(tmp_path),
    ):
        pass
    assert error.value.exit_code == ExitCode.BUSY == 75
    assert 14 < clock.now < 17


def test_a_second_job_starts_if_the_first_ends_while_it_waits(tmp_path):
    first = FakeClock().held(tmp_path)
    first.__enter__()
    clock = FakeClock(lambda: first.__exit__(None, None, None) if 3 < clock.now < 3.6 else None)
    with clock.held(tmp_path):
        assert clock.now < 4


def test_a_killed_job_on_this_machine_is_taken_over_at_once(tmp_path):
    """Kills a real process, whose end the kernel's lock reveals."""
    script = (
        "import pathlib, sys, time; from trainer.run_dir.lock import Lock\n"
        f"with Lock(pathlib.Path({str(tmp_path)!r})).held():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.kill()
    process.wait()
    assert (tmp_path / "lock.json").exists()
    clock = FakeClock()
    with clock.held(tmp_path):
        assert clock.now == 0


def test_a_live_job_on_another_machine_is_not_taken_over(tmp_path):
    write_heartbeat(tmp_path)
    beats = iter(range(2, 1000))
    clock = FakeClock(lambda: write_heartbeat(tmp_path, beats=next(beats)))
    with pytest.raises(BusyError, match="process 1 on elsewhere since noon"), clock.held(tmp_path):
        pass


def test_a_dead_job_on_another_machine_is_taken_over(tmp_path):
    write_heartbeat(tmp_path)
    clock = FakeClock()
    with clock.held(tmp_path):
        assert 14 < clock.now < 18


def test_only_one_of_two_jobs_that_take_over_continues(tmp_path):
    write_heartbeat(tmp_path)
    # The other job writes its heartbeat just after this one.
    clock = FakeClock(lambda: write_heartbeat(tmp_path, token="other") if clock.now > 15 else None)
    with pytest.raises(BusyError, match="was taken over"), clock.held(tmp_path):
        pass


def test_a_job_notices_that_it_was_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECS", 0.01)
    with Lock(tmp_path).held() as held:
        write_heartbeat(tmp_path, token="other")
        time.sleep(0.1)  # time in which it must not overwrite the other job's heartbeat
        with pytest.raises(BusyError, match="was taken over by process"):
            held.check_ownership()
    assert json.loads((tmp_path / "lock.json").read_text())["token"] == "other"


def test_the_holder_writes_heartbeats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECS", 0.01)
    with Lock(tmp_path).held():
        time.sleep(0.2)
        assert json.loads((tmp_path / "lock.json").read_text())["beats"] > 2


def test_an_incomplete_heartbeat_file_is_ignored(tmp_path):
    (tmp_path / "lock.json").write_text('{"token": ')
    clock = FakeClock()
    with clock.held(tmp_path):
        assert clock.now == 0
