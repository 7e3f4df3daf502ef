"""Tests of runs in a bucket that are killed and resumed elsewhere: `make test-faults`.

gcp-storage-emulator ignores preconditions, which storage/test_storage.py tests.
"""

import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.helpers import fake_gcs
from tests.helpers.fake_gcs import Fault
from tests.helpers.runs import TINY_FLAGS, Process, assert_same_run, records, variables
from trainer.errors import ExitCode
from trainer.storage.address import Address

pytestmark = pytest.mark.faults

RUN = "gs://bucket/runs/one"
NAME = Address.parse(RUN, "run_dir").local_name()


@pytest.fixture
def emulator(monkeypatch, tmp_path):
    """gcp-storage-emulator with a bucket."""
    server = pytest.importorskip("gcp_storage_emulator.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    world.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield world
    world.stop()


@pytest.fixture
def server(monkeypatch):
    world = fake_gcs.Server()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", world.url)
    yield world
    world.close()


def test_killed_and_wiped_again_and_again(emulator, tmp_path):
    """Kills jobs with SIGKILL at random times; each starts on a machine without local files."""
    arguments = [
        *TINY_FLAGS, "--steps=2000", "--devices=cpu", "--checkpoint_every_kimg=0.08",
        "--scratch_dir=s",
        "--sample_every_kimg=0.8", "--log_every_steps=10", "--log_every_secs=1e9",
    ]  # fmt: skip
    chance = random.Random(1)
    resumed = 0
    for _ in range(3):
        process = Process(tmp_path, *arguments, run_dir=RUN)
        process.wait_for("Run directory")
        time.sleep(chance.uniform(1.5, 4))
        process.popen.kill()
        process.end()
        assert "Traceback" not in process.output, process.output
        resumed += "Resuming from" in process.output
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
    last = Process(tmp_path, *arguments, run_dir=RUN)
    assert last.end() == 0, last.output
    assert resumed >= 1
    assert f"All files of the run are in {RUN}" in last.output
    whole = Process(tmp_path, *arguments, run_dir="whole")
    assert whole.end() == 0, whole.output
    assert_same_run(tmp_path / "whole", tmp_path / "s" / NAME)
    lines = records(tmp_path / "s" / NAME)
    assert sum(line["steps"] for line in lines) == lines[-1]["step"] == 2000


def test_sigterm_and_on_another_machine(emulator, tmp_path):
    arguments = [
        *TINY_FLAGS,
        "--steps=300",
        "--devices=cpu",
        "--scratch_dir=s",
        "--log_every_secs=0",
    ]
    process = Process(tmp_path, *arguments, run_dir=RUN)
    process.wait_for("images/s")
    began = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == ExitCode.STOPPED, process.output
    assert time.monotonic() - began < 15
    assert f"All files of the run are in {RUN}" in process.output
    done = records(tmp_path / "s" / NAME)[-1]["step"]
    shutil.rmtree(tmp_path / "s")
    again = Process(tmp_path, *arguments, run_dir=RUN)
    assert again.end() == 0, again.output
    assert f"Downloading checkpoints/ckpt-{done} from {RUN}" in again.output
    whole = Process(tmp_path, *arguments, run_dir="whole")
    assert whole.end() == 0
    expected, got = variables(tmp_path / "whole"), variables(tmp_path / "s" / NAME)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_commands_on_a_run_in_a_bucket(emulator, tmp_path):
    first = Process(tmp_path, *TINY_FLAGS, "--steps=2", "--devices=cpu", run_dir=RUN)
    assert first.end() == 0, first.output
    for command in (
        ["generate", "--num=4", "--out=four.png"],
        ["export", "--out=exported"],
        ["train", f"--init_from={RUN}", *TINY_FLAGS, "--steps=1"],
    ):
        where = "--run_dir=taken" if command[0] == "train" else f"--run_dir={RUN}"
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *command, where, "--devices=cpu"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "four.png").exists()
    assert (tmp_path / "exported" / "saved_model").exists()
    assert "Starting from the networks of" in done.stdout


@pytest.mark.parametrize("kind", ["hangs", "refuses", "is gone"])
def test_sigterm_while_the_bucket_fails(server, tmp_path, kind):
    arguments = [
        *TINY_FLAGS,
        "--steps=1000000",
        "--devices=cpu",
        "--scratch_dir=s",
        "--log_every_secs=0",
    ]
    process = Process(tmp_path, *arguments, run_dir=RUN)
    process.wait_for("images/s")
    if kind == "hangs":
        server.faults = [Fault("slow", secs=100.0)]
    elif kind == "refuses":
        server.faults = [Fault(503)]
    else:
        server.close()
    time.sleep(1)
    began = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == ExitCode.STOPPED, process.output
    assert time.monotonic() - began < 15
    assert f"not uploaded to {RUN}: checkpoints/ckpt-" in process.output
    assert "Traceback" not in process.output
    if kind == "is gone":
        return
    server.faults = []
    again = Process(tmp_path, *arguments, run_dir=RUN)
    again.wait_for("holds the checkpoint of step")
    again.wait_for("images/s")
    again.popen.send_signal(signal.SIGTERM)
    assert again.end() == ExitCode.STOPPED
    assert f"All files of the run are in {RUN}" in again.output


def test_two_jobs_in_a_bucket(server, tmp_path):
    arguments = [*TINY_FLAGS, "--steps=1000000", "--devices=cpu", "--log_every_secs=0"]
    first = Process(tmp_path, *arguments, "--scratch_dir=a", run_dir=RUN)
    first.wait_for("images/s")
    second = Process(tmp_path, *arguments, "--scratch_dir=b", run_dir=RUN)
    assert second.end() == ExitCode.BUSY, second.output
    assert f"{RUN} is held by process {first.popen.pid} on " in second.output
    first.popen.kill()
    first.end()
    third = Process(tmp_path, *arguments, "--scratch_dir=a", run_dir=RUN)
    third.wait_for("Taking over")  # at once, because it is the same machine
    third.wait_for("images/s")
    fourth = Process(tmp_path, *arguments, "--scratch_dir=b", run_dir=RUN)
    third.popen.kill()
    fourth.wait_for("Taking over")
    fourth.wait_for("images/s")
    fourth.popen.terminate()
    assert fourth.end() == ExitCode.STOPPED


def test_a_bucket_that_comes_and_goes(server, tmp_path):
    """All files reach the bucket despite random failures, and nothing is lost."""
    arguments = [
        *TINY_FLAGS, "--steps=3000", "--devices=cpu", "--checkpoint_every_kimg=0.4",
        "--scratch_dir=s",
        "--sample_every_kimg=1.6", "--max_failed_saves=100",
    ]  # fmt: skip
    ended = threading.Event()
    chance = random.Random(3)

    def disturb():
        while not ended.wait(chance.uniform(0, 0.5)):
            kind = chance.choice([429, 503, "cut", "lost", "corrupt", "slow", 412])
            method = chance.choice(["upload", "download", "delete", "list", "get"])
            if (kind, method) not in (("corrupt", "get"), ("cut", "delete")):
                times = chance.randint(1, 4)
                server.faults = [Fault(kind, method, "", times, secs=chance.uniform(0, 1))]

    process = Process(tmp_path, *arguments, run_dir=RUN)
    process.wait_for("Run directory")
    thread = threading.Thread(target=disturb)
    thread.start()
    time.sleep(8)
    process.popen.kill()
    process.end()
    again = Process(tmp_path, *arguments, run_dir=RUN)
    code = again.end()
    ended.set()
    thread.join()
    server.faults = []
    if code:  # the failures hit the download or the final uploads
        again = Process(tmp_path, *arguments, run_dir=RUN)
        code = again.end()
    assert code == 0, again.output
    folder = tmp_path / "s" / NAME
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".png", ".jsonl", ".json", ".index", ".keras"):
            name = path.relative_to(folder).as_posix()
            if not name.startswith((".", "lock")) and "checkpoints/ckpt" not in name:
                there = server.objects["bucket"][f"runs/one/{name}"].content
                assert there == path.read_bytes(), name
    shutil.rmtree(tmp_path / "s")
    reader = Process(tmp_path, *arguments, run_dir=RUN)
    assert reader.end() == 0
    assert "is complete: 3000 steps" in reader.output
