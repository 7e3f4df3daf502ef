"""Tests of the lock on a run directory."""

import json
import subprocess
import sys
import time

import pytest

from trainer.errors import BusyError, ExitCode
from trainer.run_dir import lock
from trainer.run_dir.lock import Lock


class World:
    """A fake clock that sleeping advances; `event` is called at each sleep."""

    def __init__(self, event=lambda: None):
        self.now, self.event = 0.0, event

    def sleep(self, secs):
        self.now += secs
        self.event()

    def held(self, folder):
        return Lock(folder).held(sleep=self.sleep, clock=lambda: self.now)


def note(folder, **changes):
    """Writes the heartbeat of a holder on another machine."""
    path = folder / "lock.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    values = dict(token="0", host="elsewhere", boot="another", pid=1, since="noon", beats=1)
    path.write_text(json.dumps({**values, **old, **changes}))


def test_a_free_directory_is_taken_at_once_and_left_clean(tmp_path):
    world = World()
    with world.held(tmp_path) as held:
        held.check()
        assert json.loads((tmp_path / "lock.json").read_text())["beats"] == 1
    assert world.now == 0
    assert not (tmp_path / "lock.json").exists()


def test_a_second_job_waits_and_is_refused(tmp_path):
    world = World()
    with (
        World().held(tmp_path),
        pytest.raises(BusyError, match=r"is held by process \d+ on .* since 20.*\. Wait") as error,
        world.held(tmp_path),
    ):
        pass
    assert error.value.exit_code == ExitCode.BUSY == 75
    assert 14 < world.now < 17


def test_a_second_job_follows_one_that_ends_in_time(tmp_path):
    first = World().held(tmp_path)
    first.__enter__()
    world = World(lambda: first.__exit__(None, None, None) if 3 < world.now < 3.6 else None)
    with world.held(tmp_path):
        assert world.now < 4


def test_one_that_died_here_is_taken_over_at_once(tmp_path):
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
    world = World()
    with world.held(tmp_path):
        assert world.now == 0


def test_one_elsewhere_that_beats_is_left_alone(tmp_path):
    note(tmp_path)
    beats = iter(range(2, 1000))
    world = World(lambda: note(tmp_path, beats=next(beats)))
    with pytest.raises(BusyError, match="process 1 on elsewhere since noon"), world.held(tmp_path):
        pass


def test_one_elsewhere_that_beats_no_more_is_taken_over(tmp_path):
    note(tmp_path)
    world = World()
    with world.held(tmp_path):
        assert 14 < world.now < 18


def test_of_two_that_take_over_one_gives_way(tmp_path):
    note(tmp_path)
    # The other job writes its heartbeat just after this one.
    world = World(lambda: note(tmp_path, token="other") if world.now > 15 else None)
    with pytest.raises(BusyError, match="was taken over"), world.held(tmp_path):
        pass


def test_who_was_taken_over_notices(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECS", 0.01)
    with Lock(tmp_path).held() as held:
        note(tmp_path, token="other")
        time.sleep(0.1)  # time in which it must not overwrite the other job's heartbeat
        with pytest.raises(BusyError, match="was taken over by process"):
            held.check()
    assert json.loads((tmp_path / "lock.json").read_text())["token"] == "other"


def test_it_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECS", 0.01)
    with Lock(tmp_path).held():
        time.sleep(0.2)
        assert json.loads((tmp_path / "lock.json").read_text())["beats"] > 2


def test_a_torn_mark_is_none(tmp_path):
    (tmp_path / "lock.json").write_text('{"token": ')
    world = World()
    with world.held(tmp_path):
        assert world.now == 0
