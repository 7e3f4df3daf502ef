"""Monitoring: JSON log lines, heartbeat, status and the limit on repeated starts."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.config.settings import Duration
from trainer.errors import ExitCode, NoProgressError, StoppedError, StorageError, UsageError
from trainer.reporting import console, heartbeat, status
from trainer.reporting.heartbeat import Heartbeat
from trainer.run_dir import events, starts
from trainer.run_dir.directory import RunDir
from trainer.run_dir.events import EventLog
from trainer.storage import run_layout

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--recipe=mlp", "--g_width=0.05", "--d_width=0.05", "--batch_size=8", "--sample_grid=2",
    "--devices=cpu", "--run_dir=run",
]  # fmt: skip


def steps(count):
    return Duration(count, "steps")


def test_json_lines_heartbeat_and_status(trainer, tmp_path):
    command = ["train", *TINY, "--log_format=json", "--heartbeat=beat"]
    result = trainer(*command, "--steps=3")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {line["severity"] for line in lines} == {"INFO"}
    assert all({"severity", "message", "time"} <= set(line) for line in lines)
    labels = [line["logging.googleapis.com/labels"] for line in lines]
    assert {(each["run"], each["worker"]) for each in labels} == {("run", "0")}
    assert any(each.get("step") == "3" for each in labels)
    beat = json.loads((tmp_path / "beat").read_text())
    assert (beat["step"], beat["phase"]) == (3, "saving")
    shown = trainer("status", "--run_dir=run", "--json")
    actual = json.loads(shown.stdout)
    conflict = trainer(*command, "--steps=4", "--g_lr=0.5")
    assert conflict.returncode == ExitCode.CHECKPOINT
    refused = events.read_newest(tmp_path / "run", 1)[0]
    assert (refused["event"], refused["code"]) == ("failure", ExitCode.CHECKPOINT)
    assert "g_lr: " in refused["reason"]
    last = json.loads(conflict.stdout.splitlines()[-1])
    assert last["severity"] == "ERROR"
    assert "g_lr: " in last["message"]

    liveness = ["doctor", "--liveness", "--heartbeat=beat"]
    assert trainer(*liveness).returncode == 0
    os.utime(tmp_path / "beat", (0, time.time() - 700))
    stale = trainer(*liveness)
    assert stale.returncode == ExitCode.CRASH
    assert "700 s old (starting), more than --max_age_secs=600" in stale.stderr

    assert (actual["state"], actual["step"], actual["last_step"]) == ("complete", 3, 3)
    assert (actual["checkpoint_step"], actual["starts"], actual["health"]) == (3, 1, [])
    start, complete = actual["events"]
    assert (start["event"], start["step"], complete["event"]) == ("start", 0, "complete")
    assert {"time", "host", "tensorflow", "keras", "trainer"} <= start.keys()
    screen = trainer("status", "--run_dir=run").stdout
    assert "mlp on digits" in screen
    assert "Checkpoint  step 3, 0:" in screen
    assert "complete with exit code 0 on " in screen
    assert trainer("status", "--run_dir=nowhere").returncode == ExitCode.USAGE


def raise_stale_handle(*arguments, **options):
    raise OSError(errno.ESTALE, "Stale file handle")


def test_events_record_how_a_run_ended(tmp_path, monkeypatch):
    log = EventLog(tmp_path)
    log.add("start")
    assert events.read_newest(tmp_path, 5) == []  # there is no run in the folder
    (tmp_path / "config.json").touch()
    for error in (StoppedError("on request"), StorageError("no space"), ValueError("odd")):
        with pytest.raises(type(error)), log.recorded_end():
            raise error
    found = [(e["event"], e["code"], e["reason"]) for e in events.read_newest(tmp_path, 5)]
    with pytest.raises(UsageError), log.recorded_failure(), log.recorded_end():
        raise UsageError("recorded once")
    assert len(events.read_newest(tmp_path, 9)) == 4
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", raise_stale_handle)
        with pytest.raises(StorageError, match="no space"), log.recorded_end():
            raise StorageError("no space")
    EventLog(tmp_path, worker=2).add("start", step=3)
    (other,) = (e for e in events.read_newest(tmp_path, 9) if e.get("worker") == 2)
    assert (tmp_path / "events-2.jsonl").exists()
    assert not run_layout.is_ours("events-2.jsonl")
    assert status._shown(other).endswith("(worker 2)")
    assert found == [
        ("stop", ExitCode.STOPPED, "on request"),
        ("failure", ExitCode.CRASH, "no space"),
        ("failure", ExitCode.CRASH, "ValueError: odd"),
    ]


KILLED = """
import os, pathlib, signal, sys
from trainer.run_dir.events import EventLog
log = EventLog(pathlib.Path(sys.argv[1]))
log.add_start(step=3)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_at_start(add):
    def killed(event, **fields):
        if event == "start":
            raise KeyboardInterrupt
        add(event, **fields)

    return killed


def test_the_next_start_records_an_end_that_was_not_recorded(tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    log = EventLog(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(log, "add", killed_at_start(log.add))
        with pytest.raises(KeyboardInterrupt):
            log.add_start(step=3)
    with pytest.raises(UsageError), log.recorded_failure():
        raise UsageError("another process was refused meanwhile")
    with (tmp_path / events.NAME).open("a") as file:
        file.write('{"time": "2026-01-01T00:')  # torn by the loss of power
    for end in (StoppedError("on request"), StorageError("no space")):
        log.add_start(step=3)
        with pytest.raises(type(end)), log.recorded_end():
            raise end
    found = events.read_newest(tmp_path, 9)
    kinds = [event["event"] for event in found]
    assert kinds == ["start", "lost", "failure", "start", "stop", "start", "failure"]
    started, here = found[0]["time"], socket.gethostname()
    assert status._shown(found[1]).endswith(
        f" lost on {here}: No end was recorded for the start of {started} on {here}. The process "
        "was probably killed, ran out of memory or lost power."
    )


def test_a_start_records_those_that_did_not_reach_the_run(tmp_path):
    (tmp_path / "config.json").touch()
    EventLog(tmp_path).add_start(2, step=3)
    EventLog(tmp_path).add_start(0, step=3)
    found = events.read_newest(tmp_path, 9)
    assert [event["event"] for event in found] == ["lost", "start", "lost", "start"]
    assert found[0]["starts"] == 2
    assert "process" in found[2]  # that of the first start, whose end nothing recorded


def test_starts_whose_end_was_recorded_are_not_counted_again(tmp_path):
    (tmp_path / "config.json").touch()
    log = EventLog(tmp_path)
    log.add_start(step=3)
    log.add_end(ExitCode.STOPPED, "an eviction")
    for process, code in (("one", ExitCode.TERMINATED), ("two", ExitCode.BUSY)):
        line = {"time": "2026", "event": "failure", "process": process, "code": int(code)}
        with open(tmp_path / "events.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
    log.add_start(3, step=3)  # the one that was stopped early, and two that left no trace
    lost = [event for event in events.read(tmp_path / "events.jsonl") if event["event"] == "lost"]
    assert [event["starts"] for event in lost] == [2]


def test_status_of_running_and_killed_runs(tiny, run, tmp_path):
    config = tiny(recipe="mlp", length=steps(2))
    run(config)
    folder = RunDir(tmp_path / "run")
    folder.config.write_text(config.replace(length=steps(10)).to_json())
    lock_note = folder.path / "lock.json"
    lock_note.write_text("{}")
    running = status.read_status(folder, "run")
    assert running.state == "running"
    assert running.secs_left > 0
    assert not running.health
    os.utime(lock_note, (0, time.time() - 100))
    stopped = status.read_status(folder, "run")
    assert stopped.state == "stopped"
    assert stopped.ending.startswith("the job was killed, so the steps since the last")
    assert "State       stopped: the job was killed" in stopped.screen()
    assert "Resume      python -m trainer train --run_dir=run\n" in f"{stopped.screen()}\n"
    assert (running.ending, running.resume) == ("", "")
    assert stopped.health == ["the job was killed; its last heartbeat was 1:40 ago"]
    record = folder.path / "metrics.jsonl"
    line = json.loads(record.read_text().splitlines()[-1])
    record.write_text(json.dumps({**line, "failed_saves": 2, "collapse": 1.0}) + "\n{torn")
    unhealthy = status.read_status(folder, "run")
    assert unhealthy.health[1:] == ["2 failed saves", "signs of collapse"]
    assert unhealthy.evaluation == {}


def test_status_of_complete_runs_and_invalid_files(tiny, run, tmp_path):
    run(tiny(recipe="mlp", length=steps(2)))
    folder = RunDir(tmp_path / "run")
    config = folder.read_config()
    folder.config.write_text(config.replace(length=steps(9)).to_json())
    # A run can end before its length, for example because its metrics stopped improving.
    assert status.read_status(folder, "x").state == "complete"
    (folder.checkpoints / "ckpt-2 (copy).json").write_text("{}")
    for text in ("[]", "{}", '{"kimg": "?"}'):
        folder.evaluation.write_text(text)
        assert status.read_status(folder, "x").evaluation == {}
    os.utime(folder.generator, (0, 0))  # older than the newest checkpoint: training is not complete
    actual = status.read_status(folder, "x")
    assert (actual.state, actual.checkpoint_step) == ("stopped", 2)
    assert actual.ending == "the job ended, and all steps are saved"
    (folder.checkpoints / "ckpt-2.json").rename(folder.checkpoints / "ckpt-1.json")
    assert "ended without a save" in status.read_status(folder, "x").ending


def test_status_without_a_run_directory_lists_the_runs(tiny, run, tmp_path, trainer):
    none = trainer("status")
    assert none.returncode == ExitCode.USAGE
    assert none.stderr == "error: --run_dir is missing, and the folder runs/ holds no run.\n"
    run(tiny(recipe="mlp", length=steps(2), run_dir=str(tmp_path / "runs/first")))
    (tmp_path / "runs/second").mkdir()
    (tmp_path / "runs/second/config.json").write_text("{}")
    first, second = trainer("status").stdout.splitlines()
    shown = "runs/first complete 100% 0.016 kimg mlp on digits"
    assert " ".join(first.split()) == shown
    assert second.startswith("runs/second/config.json has format_version None")
    first, second = map(json.loads, trainer("status", "--json").stdout.splitlines())
    assert (first["run_dir"], first["state"]) == ("runs/first", "complete")
    assert set(second) == {"error"}


def test_progress_line_supports_metrics_of_older_versions():
    line = dict.fromkeys(("kimg", "images_per_sec", "d_loss", "g_loss", "g_acc"), 1.0)
    line |= {"d_acc": 1.0, "d_real_acc": 1.0, "d_fake_acc": 1.0, "memory_gib": {}}
    assert "waiting" not in console.progress(line, 2.0, 1.0)
    assert "25% waiting for data" in console.progress({**line, "data_wait": 0.25}, 2.0, 1.0)


def test_status_shows_the_latest_evaluation(tiny, run, tmp_path):
    run(tiny(recipe="mlp", length=steps(2)))
    folder = RunDir(tmp_path / "run")
    line = json.loads(folder.metrics.read_text().splitlines()[-1])
    folder.metrics.write_text(json.dumps({**line, "evaluated_kimg": 2.0, "fid": 7.5}) + "\n")
    assert status.read_status(folder, "x").evaluation == {"kimg": 2.0, "fid": 7.5}
    folder.evaluation.write_text('{"kimg": 1.0, "fid": 9.0}')  # evaluates an earlier checkpoint
    assert status.read_status(folder, "x").evaluation["fid"] == 7.5
    folder.evaluation.write_text('{"kimg": 2.0, "fid": 5.25, "precision": 0.5, "seed": 0}')
    shown = status.read_status(folder, "gs://b/r").screen()
    assert "Evaluation  kimg 2, fid 5.25, precision 0.5" in shown
    assert "gs://b/r: mlp on digits" in shown


def test_heartbeat_limits_its_rate_and_tolerates_write_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat.time, "time", lambda: now[0])
    now, path = [100.0], tmp_path / "beat"
    beats = Heartbeat(path)
    for now[0], step in ((100.0, 1), (100.5, 2), (101.1, 3)):
        beats.beat(step)
    assert json.loads(path.read_text())["step"] == 3
    now[0] = 100.5
    Heartbeat(tmp_path / "no" / "folder").beat(1)
    Heartbeat(None).beat(1)
    with pytest.raises(UsageError, match="cannot be read"):
        heartbeat.check_age(tmp_path / "none", 10)


def test_starts_without_progress_are_limited(tmp_path):
    run_dir = RunDir(tmp_path)
    assert [run_dir.record_start(0) for _ in range(3)] == [0, 1, 2]
    assert [run_dir.record_start(5) for _ in range(starts.MAX_STARTS)] == list(range(3, 23))
    refusal = "20 consecutive starts made no progress beyond step 5"
    with pytest.raises(NoProgressError, match=refusal) as error:
        run_dir.record_start(5)
    assert error.value.exit_code == ExitCode.DIVERGED == 70
    (tmp_path / starts.NAME).unlink()
    assert run_dir.record_start(5) == 0


def test_vertex_environment_variables_set_the_directories(trainer):
    environment = {
        name: f"gs://bucket/{name}/"
        for name in ("AIP_CHECKPOINT_DIR", "AIP_TENSORBOARD_LOG_DIR", "AIP_MODEL_DIR")
    }
    config = json.loads(trainer("train", "--dry_run", "--model_dir=here", **environment).stdout)
    assert config["run_dir"] == "gs://bucket/AIP_CHECKPOINT_DIR"
    assert config["tensorboard_dir"] == "gs://bucket/AIP_TENSORBOARD_LOG_DIR"
    assert config["model_dir"] == "here"
    none = json.loads(trainer("train", "--dry_run", "--model_dir=", **environment).stdout)
    assert none["model_dir"] == ""
