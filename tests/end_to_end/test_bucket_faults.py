"""Runs in a bucket that are killed and resumed on another machine; run by `make test-faults`.

The gcp-storage-emulator ignores preconditions, so storage/test_storage.py tests those.
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

from tests.helpers.fake_gcs import Fault
from tests.helpers.runs import TINY_FLAGS, Process, assert_same_run, records, variables
from trainer.errors import ExitCode
from trainer.storage.address import Address

pytestmark = pytest.mark.faults

RUN = "gs://bucket/runs/one"
NAME = Address.parse(RUN, "run_dir").local_name()


@pytest.fixture
def emulator(monkeypatch, tmp_path):
    """Returns a running gcp-storage-emulator with a bucket."""
    server = pytest.importorskip("gcp_storage_emulator.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fake = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    fake.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield fake
    fake.stop()


def test_run_killed_repeatedly_without_local_files_is_identical_to_an_uninterrupted_run(
    emulator, tmp_path
):
    """Kills jobs with SIGKILL at random times. Each job starts on a machine without local files."""
    arguments = [
        *TINY_FLAGS, "--steps=800", "--devices=cpu", "--checkpoint_every_kimg=0.16",
        "--scratch_dir=s",
        "--sample_every_kimg=0.8", "--log_every_steps=10", "--log_every_secs=1e9",
    ]  # fmt: skip
    rng = random.Random(1)
    num_resumed = 0
    for _ in range(3):
        process = Process(tmp_path, *arguments, run_dir=RUN)
        process.wait_for("Run directory")
        time.sleep(rng.uniform(1.5, 4))
        process.popen.kill()
        process.wait()
        assert "Traceback" not in process.output, process.output
        num_resumed += "Resuming from" in process.output
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
    last = Process(tmp_path, *arguments, run_dir=RUN)
    assert last.wait() == 0, last.output
    assert num_resumed >= 1
    assert f"All files of the run are in {RUN}" in last.output
    uninterrupted = Process(tmp_path, *arguments, run_dir="uninterrupted")
    assert uninterrupted.wait() == 0, uninterrupted.output
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "s" / NAME)
    lines = records(tmp_path / "s" / NAME)
    assert sum(line["steps"] for line in lines) == lines[-1]["step"] == 800


def test_run_stopped_by_sigterm_resumes_on_another_machine(emulator, tmp_path):
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
    assert process.wait() == ExitCode.STOPPED, process.output
    assert time.monotonic() - began < 15
    assert f"All files of the run are in {RUN}" in process.output
    done = records(tmp_path / "s" / NAME)[-1]["step"]
    shutil.rmtree(tmp_path / "s")
    resumed = Process(tmp_path, *arguments, run_dir=RUN)
    assert resumed.wait() == 0, resumed.output
    assert f"Downloading checkpoints/ckpt-{done} from {RUN}" in resumed.output
    uninterrupted = Process(tmp_path, *arguments, run_dir="uninterrupted")
    assert uninterrupted.wait() == 0
    expected, actual = variables(tmp_path / "uninterrupted"), variables(tmp_path / "s" / NAME)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_commands_read_a_run_in_a_bucket(emulator, tmp_path):
    first = Process(tmp_path, *TINY_FLAGS, "--steps=2", "--devices=cpu", run_dir=RUN)
    assert first.wait() == 0, first.output
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
def test_sigterm_stops_the_run_while_the_bucket_fails(gcs, tmp_path, kind):
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
        gcs.faults = [Fault("slow", secs=100.0)]
    elif kind == "refuses":
        gcs.faults = [Fault(503)]
    else:
        gcs.close()
    time.sleep(1)
    began = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() == ExitCode.STOPPED, process.output
    assert time.monotonic() - began < 15
    assert f"not uploaded to {RUN}: checkpoints/ckpt-" in process.output
    assert "Traceback" not in process.output
    if kind == "is gone":
        return
    gcs.faults = []
    resumed = Process(tmp_path, *arguments, run_dir=RUN)
    resumed.wait_for("holds the checkpoint of step")
    resumed.wait_for("images/s")
    resumed.popen.send_signal(signal.SIGTERM)
    assert resumed.wait() == ExitCode.STOPPED
    assert f"All files of the run are in {RUN}" in resumed.output


def test_only_one_job_holds_a_run_in_a_bucket(gcs, tmp_path):
    arguments = [*TINY_FLAGS, "--steps=1000000", "--devices=cpu", "--log_every_secs=0"]
    first = Process(tmp_path, *arguments, "--scratch_dir=a", run_dir=RUN)
    first.wait_for("images/s")
    second = Process(tmp_path, *arguments, "--scratch_dir=b", run_dir=RUN)
    assert second.wait() == ExitCode.BUSY, second.output
    assert f"{RUN} is held by process {first.popen.pid} on " in second.output
    first.popen.kill()
    first.wait()
    third = Process(tmp_path, *arguments, "--scratch_dir=a", run_dir=RUN)
    third.wait_for("Taking over")  # immediately, because it runs on the same machine
    third.wait_for("images/s")
    fourth = Process(tmp_path, *arguments, "--scratch_dir=b", run_dir=RUN)
    third.popen.kill()
    fourth.wait_for("Taking over")
    fourth.wait_for("images/s")
    fourth.popen.terminate()
    assert fourth.wait() == ExitCode.STOPPED


def test_run_survives_random_failures_of_the_bucket(gcs, tmp_path):
    """Checks that all files are uploaded despite random failures and a kill."""
    arguments = [
        *TINY_FLAGS, "--steps=3000", "--devices=cpu", "--checkpoint_every_kimg=0.4",
        "--scratch_dir=s",
        "--sample_every_kimg=1.6", "--max_failed_saves=100",
    ]  # fmt: skip
    ended = threading.Event()
    rng = random.Random(3)

    def inject_faults():
        while not ended.wait(rng.uniform(0, 0.5)):
            kind = rng.choice([429, 503, "cut", "lost", "corrupt", "slow", 412])
            method = rng.choice(["upload", "download", "delete", "list", "get"])
            if (kind, method) not in (("corrupt", "get"), ("cut", "delete")):
                times = rng.randint(1, 4)
                gcs.faults = [Fault(kind, method, "", times, secs=rng.uniform(0, 1))]

    process = Process(tmp_path, *arguments, run_dir=RUN)
    process.wait_for("Run directory")
    thread = threading.Thread(target=inject_faults)
    thread.start()
    time.sleep(8)
    process.popen.kill()
    process.wait()
    resumed = Process(tmp_path, *arguments, run_dir=RUN)
    code = resumed.wait()
    ended.set()
    thread.join()
    gcs.faults = []
    if code:  # the download or the final uploads failed
        resumed = Process(tmp_path, *arguments, run_dir=RUN)
        code = resumed.wait()
    assert code == 0, resumed.output
    folder = tmp_path / "s" / NAME
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".png", ".jsonl", ".json", ".index", ".keras"):
            name = path.relative_to(folder).as_posix()
            if not name.startswith((".", "lock")) and "checkpoints/ckpt" not in name:
                uploaded = gcs.objects["bucket"][f"runs/one/{name}"].content
                assert uploaded == path.read_bytes(), name
    shutil.rmtree(tmp_path / "s")
    reader = Process(tmp_path, *arguments, run_dir=RUN)
    assert reader.wait() == 0
    assert "is complete: 3000 steps" in reader.output
