"""Tests of buckets: uploads, downloads, leases, and failures of the bucket.

The real google-cloud-storage client talks over HTTP to a small fake server.
"""

import contextlib
import shutil
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tensorflow as tf
from google.auth.exceptions import RefreshError, TransportError

from tests.helpers.fake_gcs import Fault
from tests.helpers.runs import variables
from trainer import recipes
from trainer.config.settings import Duration
from trainer.data import sources
from trainer.errors import (
    BusyError,
    CheckpointError,
    DataError,
    ExitCode,
    StoppedError,
    StorageError,
    UsageError,
)
from trainer.evaluation import evaluator
from trainer.files.atomic import write_text
from trainer.run_dir import events
from trainer.run_dir.checkpoint_files import (
    checkpoint_step,
    files_of,
    list_checkpoints,
    write_manifest,
)
from trainer.run_dir.events import EventLog, read_newest
from trainer.storage import bucket as bucket_module
from trainer.storage import dataset_download, lease, location, mirror
from trainer.storage.address import Address
from trainer.storage.bucket import Bucket, ConflictError, DamagedError, MissingError
from trainer.storage.lease import Lease
from trainer.storage.location import RunLocation, download_run

RUN = "gs://bucket/runs/one"
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(gcs, monkeypatch, tmp_path):
    """A fake server with a bucket named "bucket", short retries and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bucket_module, "FIRST_WAIT_SECS", 0.01)
    monkeypatch.setattr(bucket_module, "MAX_WAIT_SECS", 0.05)
    monkeypatch.setattr(bucket_module, "RETRY_SECS", 1.0)
    monkeypatch.setattr(mirror, "FINAL_RETRY_SECS", 0.05)
    monkeypatch.setattr(lease, "BEAT_SECS", 0.2)
    monkeypatch.setattr(lease, "RETRY_SECS", 3.0)  # a busy machine answers late
    monkeypatch.setattr(lease, "WATCH_SECS", 1.0)
    return gcs


def bucket(path="runs/one"):
    """Returns a client of a folder in the bucket of the fake server."""
    return Bucket(Address("bucket", path, "run_dir"))


# The client.


def test_uploaded_objects_can_be_listed_read_and_deleted(server, tmp_path):
    there = bucket()
    item = there.upload("a/b.bin", CONTENT, generation=0)
    assert server.objects["bucket"]["runs/one/a/b.bin"].content == CONTENT
    (tmp_path / "big").write_bytes(CONTENT * 1000)  # large enough for a resumable upload
    big = there.upload("big", tmp_path / "big", generation=0)
    assert there.list() == {"a/b.bin": item, "big": big}
    there.download(big, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT * 1000
    assert (tmp_path / "copy").stat().st_mtime == pytest.approx(big.updated, abs=1e-3)
    assert there.read("a/b.bin") == (CONTENT, item)
    assert there.read("no") is there.stat("no") is None
    there.delete(item)
    there.delete(item)
    assert server.names() == ["runs/one/big"]
    with pytest.raises(MissingError, match=r"runs/one/a/b\.bin does not exist"):
        there.download(item, tmp_path / "copy")


def test_requests_to_a_requester_pays_bucket_name_the_project(server, tmp_path, monkeypatch):
    server.payer = "ours"
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "ours")
    there = bucket()
    (tmp_path / "big").write_bytes(CONTENT * 1000)  # large enough for a resumable upload
    items = [there.upload("a", CONTENT, generation=0)]
    items.append(there.upload("big", tmp_path / "big", generation=0))
    there.copy(items[0], "runs/two/a")
    there.download(items[1], tmp_path / "copy")
    assert there.read("a") == (CONTENT, items[0])
    for item in items:
        there.delete(item)
    assert not there.list()
    monkeypatch.delenv("GOOGLE_CLOUD_QUOTA_PROJECT")
    with pytest.raises(UsageError, match=r"^--run_dir=.* Set .*GOOGLE_CLOUD_QUOTA_PROJECT to"):
        bucket().list()


def test_all_pages_of_a_long_listing_are_read(server):
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        server.put(f"runs/one/{name}", b"")
    server.put("runs/one-more/x", b"")
    for bad in ("/x", "../x", "a//b", "folder/"):
        server.put(f"runs/one/{bad}", b"")
    assert sorted(bucket().list()) == names


@pytest.mark.parametrize("kind", [429, 500, 503, "cut", "lost", "corrupt"])
def test_transient_faults_are_retried(server, tmp_path, kind):
    there = bucket()
    server.faults = [Fault(kind, "upload", times=2)]
    item = there.upload("x", CONTENT, generation=0)
    assert server.objects["bucket"]["runs/one/x"].content == CONTENT
    assert item.generation == server.objects["bucket"]["runs/one/x"].generation
    server.faults = [Fault(kind, method, times=2) for method in ("download", "delete", "list")]
    if kind in ("corrupt", "cut", "lost"):
        server.faults = server.faults[:1]
    if kind != "lost":
        there.download(item, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == CONTENT
    assert there.list() == {"x": item}
    there.delete(item)
    assert not server.names()


def test_a_permanent_fault_is_a_one_line_error(server, tmp_path):
    there = bucket()
    item = there.upload("x", CONTENT, generation=0)
    server.faults = [Fault(503)]
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"--run_dir=gs://bucket/runs/one: requests to bucket"):
        there.list()
    assert time.monotonic() - began < 5
    server.faults = [Fault("corrupt", "download")]
    with pytest.raises(DamagedError, match="gs://bucket/runs/one/x arrives damaged"):
        there.download(item, tmp_path / "y")
    server.faults = [Fault("corrupt", "upload")]
    with pytest.raises(DamagedError):
        there.upload("y", CONTENT, generation=0)
    assert not list(tmp_path.glob("*y*"))


def test_a_server_that_does_not_respond_is_a_storage_error(server, monkeypatch):
    server.faults = [Fault("slow", secs=3.0)]
    began = time.monotonic()
    with pytest.raises(StorageError, match="requests to bucket 'bucket' fail"):
        Bucket(Address("bucket", "x", "run_dir"), retry_secs=0.3).list()
    assert time.monotonic() - began < 2
    server.close()
    with pytest.raises(StorageError):
        bucket().list()


def test_an_object_of_another_writer_is_not_overwritten(server):
    there = bucket()
    server.put("runs/one/x", b"theirs")
    with pytest.raises(ConflictError):
        there.upload("x", CONTENT, generation=0)
    assert server.objects["bucket"]["runs/one/x"].content == b"theirs"
    same = server.put("runs/one/x", CONTENT)  # as if the response to an upload had been lost
    assert there.upload("x", CONTENT, generation=0).generation == same.generation


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            403,
            r"the permission storage.objects.list on bucket 'bucket' is missing \(403 .*objectV",
        ),
        (
            401,
            r"the permission storage.objects.list on bucket 'bucket' needs credentials, and none",
        ),
    ],
)
def test_missing_permissions_are_named(server, code, text):
    server.faults = [Fault(code)]
    with pytest.raises(UsageError, match=rf"^--run_dir=gs://bucket/runs/one: {text}"):
        bucket().list()


def test_missing_write_permission_and_missing_bucket_are_named(server):
    server.faults = [Fault(403, "upload")]
    with pytest.raises(
        UsageError, match=r"permission storage.objects.create .* roles/storage.objectUs"
    ):
        bucket().upload("x", b"", generation=0)
    nowhere = Bucket(Address("nowhere", "x", "data_dir"))
    for call in (nowhere.list, lambda: nowhere.upload("x", b"", generation=0)):
        with pytest.raises(UsageError, match="--data_dir=gs://nowhere/x: bucket 'nowhere' does"):
            call()


def test_unreadable_credentials_are_an_error_and_none_are_anonymous(monkeypatch, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "no.json"))
    with pytest.raises(UsageError, match=r"GOOGLE_APPLICATION_CREDENTIALS=.*no.json cannot be"):
        bucket()
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    assert bucket()._errors.anonymous


def test_an_unreachable_metadata_server_is_a_transient_fault(server):
    there = bucket()._errors
    away = RefreshError("no token")
    away.__cause__ = TransportError("no metadata server")
    assert isinstance(there._converted(away, "storage.objects.get", "x"), StorageError)
    revoked = there._converted(RefreshError("revoked"), "storage.objects.get", "x")
    assert isinstance(revoked, UsageError)


@pytest.mark.parametrize("text", ["gs://", "gs://B/x", "gs://bucket//x", "gs://bucket/../x"])
def test_invalid_addresses_are_refused(text):
    with pytest.raises(UsageError, match=rf"^--run_dir={text}"):
        Address.parse(text, "run_dir")


# Leases.


def test_a_live_job_is_not_taken_over_and_a_dead_one_is(server, tmp_path, caplog):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    address = Address("bucket", "runs/one", "run_dir")
    with Lease(address, folders[0]).held() as first:
        with pytest.raises(
            BusyError, match=r"^gs://bucket/runs/one is held by process \d+ on "
        ) as e:
            Lease(address, folders[1]).held().__enter__()
        first.check_ownership()
    assert e.value.exit_code == ExitCode.BUSY == 75
    assert not server.names()

    dead = Lease(address, folders[0])
    dead._acquire(time.sleep, time.monotonic)
    began = time.monotonic()
    with Lease(address, folders[1]).held():  # on another machine, which watches the heartbeat
        assert 0.9 < time.monotonic() - began < 4
    dead._acquire(time.sleep, time.monotonic)
    began = time.monotonic()
    with Lease(
        address, folders[0]
    ).held():  # on the same machine, which knows that the holder has ended
        assert time.monotonic() - began < 0.5


def test_a_job_notices_that_it_was_taken_over(server, tmp_path):
    address = Address("bucket", "runs/one", "run_dir")
    with Lease(address, tmp_path).held() as held:
        server.faults = [Fault(503, "upload", times=3)]  # transient failures do not lose the lease
        time.sleep(0.5)
        held.check_ownership()
        server.put("runs/one/lock.json", b'{"token": "other", "pid": 1, "host": "h", "since": "s"}')
        time.sleep(1.0)
        with pytest.raises(BusyError, match=r"was taken over by process 1 on h since s"):
            held.check_ownership()
    assert server.names() == ["runs/one/lock.json"]  # the lease of the other job stays


def test_only_one_of_several_concurrent_jobs_gets_the_lease(server, tmp_path):
    address, results = Address("bucket", "runs/one", "run_dir"), []

    def job(number):
        (tmp_path / str(number)).mkdir()
        try:
            with Lease(address, tmp_path / str(number)).held():
                results.append("held")
                time.sleep(2.0)
        except BusyError:
            results.append("busy")

    threads = [threading.Thread(target=job, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["busy", "busy", "held"]


# Runs whose files are written without networks.


class Job:
    """Writes to a run directory as training does, without networks."""

    def __init__(self, keep=3, max_failed=3):
        given = dict(run_dir=RUN, keep_checkpoints=keep, max_failed_saves=max_failed)
        self.place = RunLocation(recipes.resolve(given))
        self.folder, self.keep = self.place.folder, keep

    @contextlib.contextmanager
    def working(self, **given):
        """Holds the run; `resumed` is the step of the checkpoint that was downloaded."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.place.mirrored(**given) as self.uploads:
            found = list_checkpoints(self.folder / "checkpoints")
            self.resumed = checkpoint_step(found[0]) if found else None
            yield self

    def save(self, step, content=None, uploaded=False):
        """Writes metrics and a checkpoint; with `uploaded`, waits until they are uploaded."""
        folder = self.folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        record = "".join(f'{{"step": {number}}}\n' for number in range(1, step + 1))
        write_text(self.folder / "metrics.jsonl", record)
        write_text(self.folder / "config.json", "{}")
        (folder / f"ckpt-{step}.data-00000-of-00001").write_bytes(
            content or CONTENT + bytes([step])
        )
        (folder / f"ckpt-{step}.index").write_bytes(bytes([step]))
        write_manifest(folder / f"ckpt-{step}", step)
        for old in list_checkpoints(folder)[self.keep :]:
            for file in files_of(old):
                file.unlink()
        self.uploads.saved()
        if uploaded:
            deadline = time.monotonic() + 10
            while self.uploads._newest().marker not in self.uploads._uploaded:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(0.05)  # for the removal of old checkpoints

    def run(self, *steps, **given):
        """Saves these steps, each of which is uploaded before the next."""
        with self.working(**given):
            for step in steps:
                self.save(step, uploaded=True)
        return self

    def wipe(self):
        """Removes the local folder, as on a machine that has never held the run."""
        shutil.rmtree(self.folder)
        return self


def saved(server, run="runs/one"):
    """Returns the steps of the checkpoints in the bucket that have a manifest."""
    names = server.names(f"{run}/checkpoints/ckpt-")
    return sorted(int(n.rpartition("-")[2][:-5]) for n in names if n.endswith(".json"))


def test_retention_applies_to_the_bucket(server):
    job = Job(keep=2).run(1, 2, 3)
    assert saved(server) == [2, 3]
    job.wipe()
    with job.working():
        assert job.resumed == 3
        job.save(4, uploaded=True)
    assert saved(server) == [3, 4]
    deletes = [
        n for n, entry in enumerate(server.log) if entry[0] == "delete" and "ckpt" in entry[1]
    ]
    commits = [n for n, entry in enumerate(server.log) if entry[1].endswith("ckpt-4.json")]
    assert max(commits) > min(deletes)  # step 1 is deleted after step 3 was uploaded
    assert server.log[deletes[0]][1].endswith("ckpt-1.json")  # the manifest first


def test_the_manifest_is_uploaded_last_and_the_metrics_first(server):
    Job().run(1)
    order = [name.removeprefix("runs/one/") for method, name in server.log if method == "upload"]
    assert order.index("metrics.jsonl") < order.index("checkpoints/ckpt-1.data-00000-of-00001")
    assert [n for n in order if n.startswith("checkpoints/")] == [
        "checkpoints/ckpt-1.data-00000-of-00001",
        "checkpoints/ckpt-1.index",
        "checkpoints/ckpt-1.json",
    ]


def damage(server, step, kind):
    """Damages a checkpoint in the bucket."""
    name = f"runs/one/checkpoints/ckpt-{step}.data-00000-of-00001"
    if kind == "missing":
        del server.objects["bucket"][name]
    elif kind == "no manifest":
        del server.objects["bucket"][f"runs/one/checkpoints/ckpt-{step}.json"]
    elif kind == "always corrupt":
        server.faults = [Fault("corrupt", "download", rf"ckpt-{step}\.data")]
    else:
        server.put(name, server.objects["bucket"][name].content[:-100] + bytes(100))


@pytest.mark.parametrize("kind", ["missing", "no manifest", "other content", "always corrupt"])
def test_an_older_checkpoint_replaces_a_damaged_one(server, caplog, kind):
    job = Job(keep=2).run(1, 2, 3).wipe()
    damage(server, 3, kind)
    with job.working():
        assert job.resumed == 2
        if kind != "no manifest":
            assert (
                "Skipping checkpoint checkpoints/ckpt-3.json of gs://bucket/runs/one" in caplog.text
            )
            assert server.names("runs/one/checkpoints/damaged/ckpt-3.1/")
        job.save(3, content=b"other", uploaded=True)
    server.faults = []
    assert saved(server) == [2, 3]
    with job.wipe().working():
        assert job.resumed == 3
    assert (job.folder / "checkpoints/ckpt-3.data-00000-of-00001").read_bytes() == b"other"


def test_no_fresh_start_if_no_checkpoint_is_usable(server):
    job = Job().run(1, 2).wipe()
    before = dict(server.objects["bucket"])
    for step in (1, 2):
        damage(server, step, "other content")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"None of the .* is intact .*--fresh") as error:
            job.run()
    assert error.value.exit_code == ExitCode.CHECKPOINT == 73
    server.objects["bucket"] = before
    for kind, expected in ((503, StorageError), (403, UsageError)):
        for method in ("list", "download"):
            server.faults = [Fault(kind, method)]
            with pytest.raises(expected):
                job.run()
    server.faults = []
    with job.working():
        assert job.resumed == 2


def test_fresh_moves_the_old_run_aside(server):
    job = Job().run(1, 2).wipe()
    with job.working(fresh=True):
        assert job.resumed is None
        job.save(1, uploaded=True)
    assert saved(server) == [1]
    assert saved(server, "runs/one.old-1") == [1, 2]
    job.wipe().run(fresh=True)
    assert saved(server, "runs/one.old-2") == [1]
    assert saved(server) == []


def stop_with(secs):
    """Returns arguments by which a stop waits `secs` for the uploads."""
    return dict(secs_left=lambda: secs + location.LEAVE_SECS)


def stopped(job, *steps, secs=1.0):
    """Saves these steps and then stops as after a signal."""
    began = time.monotonic()
    with pytest.raises(StoppedError), job.working(**stop_with(secs)):  # noqa: PT012
        for step in steps:
            job.save(step)
        raise StoppedError("Stopped on request.")
    assert time.monotonic() - began < secs + location.LEAVE_SECS + 1


def test_failed_uploads_are_repeated_by_the_next_job(server, caplog):
    job = Job(max_failed=100).run(1)
    server.faults = [Fault(503, "upload", "checkpoints|metrics")]
    stopped(job, 2, 3)
    assert "not uploaded to gs://bucket/runs/one: checkpoints/ckpt-3, metrics.jsonl" in caplog.text
    assert saved(server) == [1]
    server.faults = []
    with job.working():
        assert job.resumed == 3
        assert "holds the checkpoint of step 3, but gs://bucket/runs/one has step 1" in caplog.text
    assert saved(server) == [1, 3]
    with job.wipe().working():
        assert job.resumed == 3
        assert (job.folder / "metrics.jsonl").read_text().count("\n") == 3


def test_a_file_rewritten_with_equal_content_is_not_reported_as_missing(server, caplog):
    job = Job(max_failed=100).run(1)
    server.faults = [Fault(503, "upload", "metrics")]
    with pytest.raises(StoppedError), job.working(**stop_with(0.2)):  # noqa: PT012
        job.save(2)
        deadline = time.monotonic() + 10
        while ("upload", "runs/one/metrics.jsonl") not in server.log[-1:]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job.save(3)  # rewrites config.json, which the current pass has already compared
        raise StoppedError("Stopped on request.")
    assert "not uploaded to gs://bucket/runs/one: checkpoints/ckpt-3, metrics.jsonl" in caplog.text


def test_a_stop_waits_for_pending_uploads(server):
    job = Job()
    server.faults = [Fault("slow", "upload", secs=0.1)]
    stopped(job, 1, 2, 3, secs=9.0)
    assert saved(server)[-1] == 3


def test_a_stop_does_not_wait_for_a_hanging_bucket(server, caplog):
    server.faults = [Fault("slow", "upload", r"\.data", secs=30.0)]
    stopped(Job(), 1)
    assert "not uploaded to gs://bucket/runs/one: checkpoints/ckpt-1" in caplog.text
    assert saved(server) == []


def test_a_machine_with_an_old_copy_downloads_the_newer_checkpoint(server):
    job = Job().run(1, 2)
    away = job.folder.with_name("away")
    shutil.copytree(job.folder, away)
    job.wipe().run(3)
    job.wipe()
    away.rename(job.folder)
    (job.folder / "checkpoints/ckpt-9.index").write_bytes(b"of a save that was cut off")
    with job.working():
        assert job.resumed == 3
        assert (job.folder / "metrics.jsonl").read_text().count("\n") == 3


def test_an_end_that_was_not_uploaded_is_kept(server, monkeypatch):
    job = Job().run(1)
    (job.folder / "config.json").write_text("{}")
    log = EventLog(job.folder)
    log.add_start(step=1)
    with job.working():
        pass  # uploads the start
    log.add_end(ExitCode.TERMINATED, "not done within 12 s")
    uploaded = server.objects["bucket"]["runs/one/events.jsonl"].content
    with monkeypatch.context() as patch:  # killed after the download of the events
        patch.setattr(events, "add_missing", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), job.working():
            pass
    with job.working():
        local = (job.folder / "events.jsonl").read_bytes()
        assert local.startswith(uploaded)
        assert [event["event"] for event in read_newest(job.folder, 5)] == ["start", "stop"]
    assert server.objects["bucket"]["runs/one/events.jsonl"].content == local


def test_the_scratch_folder_of_another_run_is_moved_aside(server, caplog):
    job = Job().run(1, 2, 3)
    old = dict(server.objects["bucket"])
    server.objects["bucket"].clear()
    with job.working():
        assert job.resumed is None
    assert "held a different run than the bucket. Moved that run to" in caplog.text
    aside = job.folder.with_name(f"{job.folder.name}.old-1")
    assert list_checkpoints(aside / "checkpoints")[0].name == "ckpt-3"
    server.objects["bucket"] = old
    with job.working():
        assert job.resumed == 3


def test_a_run_that_was_copied_into_a_bucket_by_hand_resumes(server):
    job = Job().run(1, 2).wipe()
    del server.objects["bucket"]["runs/one/run.json"]
    with job.working():
        assert job.resumed == 2
    assert "runs/one/run.json" in server.names()


@pytest.mark.parametrize(("kind", "expected"), [(403, UsageError), (503, StorageError)])
def test_a_bucket_that_keeps_failing_ends_the_run(server, kind, expected, monkeypatch):
    monkeypatch.setattr(bucket_module, "RETRY_SECS", 0.1)
    server.faults = [Fault(kind, "upload", "checkpoints")]
    job = Job(max_failed=2)

    def save_on():
        with job.working(**stop_with(0.5)):
            for step in range(50):
                job.uploads.check_ownership()
                job.save(step)
                time.sleep(0.2)

    with pytest.raises(
        expected, match=r"^3 consecutive checkpoints could not be uploaded to gs://bucket/runs/one,"
    ):
        save_on()
    assert job.uploads.failures == 3


def test_transient_upload_failures_do_not_end_the_run(server, monkeypatch, caplog):
    monkeypatch.setattr(bucket_module, "RETRY_SECS", 0.1)
    job = Job(max_failed=1)
    with job.working():
        for step in range(1, 7):
            server.faults = [Fault(503, "upload", r"ckpt.*data")] if step % 2 else []
            job.save(step, uploaded=step % 2 == 0)
            deadline = time.monotonic() + 20
            while job.uploads.failures < (step + 1) // 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            job.uploads.check_ownership()
        assert job.uploads.failures == 3
    assert "The checkpoint of step 1 could not be uploaded to gs://bucket/runs/one: " in caplog.text
    assert "Training continues; the uploads of 0 more checkpoints may fail." in caplog.text
    assert saved(server) == [2, 4, 6]


def test_a_slow_bucket_is_not_a_failure(server):
    server.faults = [Fault("slow", "upload", secs=0.1)]
    job = Job(keep=1, max_failed=0)
    with job.working():
        for step in range(1, 40):
            job.save(step)
            job.uploads.check_ownership()
            time.sleep(0.01)
    assert saved(server) == [39]
    assert job.uploads.failures == 0
    assert not (job.folder / mirror.STAGING).exists()


def test_the_best_checkpoints_are_mirrored(server):
    job = Job().run(1)
    with job.working():
        (job.folder / "best").mkdir()
        for step in (5, 9):
            for path in (job.folder / "checkpoints").glob("ckpt-1.*"):
                shutil.copy(path, job.folder / "best" / path.name.replace("-1.", f"-{step}."))
            if step == 9:
                [path.unlink() for path in (job.folder / "best").glob("ckpt-5.*")]
            job.uploads._next_full_pass = 0.0
            job.save(step, uploaded=True)
            time.sleep(0.3)
    assert [name.rpartition("/")[2] for name in server.names("runs/one/best/")] == [
        "ckpt-9.data-00000-of-00001", "ckpt-9.index", "ckpt-9.json",
    ]  # fmt: skip
    job.wipe().run()
    assert len(list((job.folder / "best").iterdir())) == 3


def test_a_run_is_downloaded_for_reading(server):
    job = Job().run(1, 2)
    folder = download_run(RUN)
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["ckpt-2"]
    assert (folder / "metrics.jsonl").exists()
    count = len(server.log)
    download_run(RUN)
    assert "download" not in [method for method, _ in server.log[count:]]  # once
    assert not (folder / "lock.json").exists()
    assert (folder / ".lock").exists()  # held by commands that read the run
    with job.working():
        assert (
            download_run(RUN) / "lock.json"
        ).exists()  # its age shows `status` that the run is being trained
    job.run(3)
    download_run(RUN, which=None)  # downloads only the manifest
    assert not (folder / "samples").exists()
    assert (folder / "checkpoints/ckpt-3.json").exists()
    assert not list(folder.glob("checkpoints/ckpt-3.data*"))
    assert list_checkpoints(download_run(RUN) / "checkpoints")[0].name == "ckpt-3"
    assert list(folder.glob("checkpoints/ckpt-3.data*"))
    damage(server, 3, "other content")
    assert list_checkpoints(download_run(RUN) / "checkpoints")[0].name == "ckpt-2"
    assert saved(server) == [1, 2, 3]  # a reader changes nothing
    assert [p.name for p in list_checkpoints(download_run(RUN, which="1") / "checkpoints")] == [
        "ckpt-2",
        "ckpt-1",
    ]
    assert len(list_checkpoints(download_run(RUN, which="all") / "checkpoints")) == 3
    assert len(list_checkpoints(download_run(RUN) / "checkpoints")) == 2
    server.objects["bucket"].clear()
    with pytest.raises(UsageError, match=r"^--run_dir=gs://bucket/runs/one is not a run directory"):
        download_run(RUN)
    assert not list(folder.glob("checkpoints/*"))
    with pytest.raises(UsageError, match="names only a bucket"):
        download_run("gs://bucket")


# Runs with networks.


def test_a_real_run_resumes_on_another_machine(server, tiny, run, tmp_path):
    def config(last, where=RUN):
        steps = Duration(last, "steps")
        return tiny(run_dir=where, length=steps, keep_checkpoints=2, log_every_secs=1e9)

    output = run(config(2))
    assert "All files of the run are in gs://bucket/runs/one" in output
    names = {name.removeprefix("runs/one/") for name in server.names()}
    assert {
        "config.json", "data.json", "provenance.json", "metrics.jsonl", "run.json", "training.gif",
        "generator.keras", "samples/reals.png", "checkpoints/ckpt-2.index",
    } <= names  # fmt: skip
    assert any(name.startswith("tensorboard/events") for name in names)
    assert not [n for n in names if "lock" in n or "/." in n or n.startswith(".") or "part" in n]
    written = server.objects["bucket"]["runs/one/config.json"].content
    assert b'"run_dir": "gs://bucket/runs/one"' in written

    here = RunLocation(config(2)).folder
    shutil.rmtree(here)
    output = run(config(4))
    assert "Downloading checkpoints/ckpt-2 from gs://bucket/runs/one" in output
    assert "Resuming from" in output
    assert saved(server) == [2, 4]
    run(config(4, str(tmp_path / "whole")))
    expected, got = variables(tmp_path / "whole"), variables(here)
    assert all((got[name] == value).all() for name, value in expected.items())
    for path in here.rglob("*"):
        if path.suffix in (".png", ".jsonl", ".gif", ".index", ".keras"):
            there = server.objects["bucket"][f"runs/one/{path.relative_to(here)}"]
            assert there.content == path.read_bytes(), path


def vertex(where):
    """Returns the output flags that Vertex AI sets for a job."""
    places = dict(run_dir="checkpoints", tensorboard_dir="logs", model_dir="model")
    return {name: f"{where}/{folder}" for name, folder in places.items()}


@pytest.mark.parametrize("local", [False, True], ids=["bucket", "disk"])
def test_logs_and_the_model_are_copied_to_their_directories(server, tiny, run, tmp_path, local):
    where = str(tmp_path / "job") if local else "gs://bucket/job"
    config = tiny(length=Duration(2, "steps"), **vertex(where))
    output = run(config)
    assert f"ckpt-2 to --model_dir={where}/model" in output
    assert "ckpt-2 to" not in run(config)  # complete
    if local:
        folder = tmp_path / "job"
        names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    else:
        folder = tmp_path / "download"
        names = {name.removeprefix("job/") for name in server.names("job/")}
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(server.objects["bucket"][f"job/{name}"].content)
        models = [n for method, n in server.log if method == "upload" and "/model/" in n]
        assert models[-1].endswith("saved_model.pb")
    events = [name for name in names if "tfevents" in name]
    assert events
    assert all(name.startswith("logs/") for name in events)
    served = tf.saved_model.load(str(folder / "model")).signatures["serving_default"]
    latents, labels = tf.zeros([3, config.latent_dim]), tf.range(3)
    assert served(latents=latents, labels=labels)["images"].shape == (3, 28, 28, 1)
    late = f"{where}/late"  # requested after the run is complete
    assert f"ckpt-2 to --model_dir={late}" in run(config.replace(model_dir=late))


def test_failed_uploads_of_logs_do_not_stop_the_run(server, tiny, run, caplog):
    server.faults = [Fault(403, "upload", name="^job/logs", times=99)]
    output = run(tiny(length=Duration(2, "steps"), **vertex("gs://bucket/job")))
    assert (
        "could not be uploaded to gs://bucket/job/logs: --tensorboard_dir=gs://bucket/job/logs"
        in output
    )
    assert "storage.objects.create" in output
    assert server.names("job/model")


def test_a_model_upload_that_failed_is_repeated_by_the_next_start(server, tiny, run, tmp_path):
    config = tiny(length=Duration(2, "steps"), **{**vertex("gs://bucket/job"), "run_dir": RUN})
    server.faults = [Fault(403, "upload", name="saved_model.pb", times=1)]
    with pytest.raises(UsageError, match="--model_dir=gs://bucket/job/model: the permission"):
        run(config)
    assert "job/model/saved_model.pb" not in server.names()
    run(config)
    assert "job/model/saved_model.pb" in server.names()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--model_dir=\S+file/x cannot be written"):
        run(config.replace(model_dir=str(tmp_path / "file" / "x")))
    with pytest.raises(
        UsageError, match="--tensorboard_dir=gs://B: 'B' is not a valid bucket name"
    ):
        run(config.replace(tensorboard_dir="gs://B"))


def test_outputs_of_generate_and_export_must_be_on_a_disk(trainer):
    done = trainer("generate", f"--run_dir={RUN}")
    assert (done.returncode, done.stderr.count("\n")) == (64, 1)
    assert "--out is missing: --run_dir=gs://bucket/runs/one is in a bucket." in done.stderr
    done = trainer("export", f"--run_dir={RUN}", "--out=gs://bucket/x")
    assert "--out=gs://bucket/x must be a path on a disk of this machine." in done.stderr


# Data.


def test_data_sets_are_downloaded_once(server, tmp_path):
    server.put("pics/a/1.png", CONTENT)
    server.put("pics/b/2.png", CONTENT[:100])
    server.put("pics/.about.json", b"theirs")
    server.faults = [Fault("corrupt", "download", times=1), Fault("cut", "download", times=1)]
    seen = []

    def fetch(place="gs://bucket/pics", **given):
        return dataset_download.fetch(
            place, "dataset", tmp_path, lambda *said: seen.append(said), **given
        )

    folder = fetch()
    assert (folder / "a" / "1.png").read_bytes() == CONTENT
    assert seen[-1][0] == 1.0
    assert "Downloading 3 files" in seen[-1][1]
    count = len(server.log)
    assert fetch() == folder
    assert not [entry for entry in server.log[count:] if entry[0] == "download"]
    server.put("pics/a/1.png", b"new")
    del server.objects["bucket"]["pics/b/2.png"]
    (folder / ".about.json").unlink()
    fetch()
    assert (folder / "a" / "1.png").read_bytes() == b"new"
    assert not (folder / "b" / "2.png").exists()
    assert (folder / ".about.json").read_bytes() == b"theirs"

    server.put("sets/x.npz", CONTENT)
    assert fetch("gs://bucket/sets/x.npz").read_bytes() == CONTENT
    assert fetch("gs://bucket/sets", wanted=("*.zip",)).name == "sets"
    with pytest.raises(DataError, match=r"--dataset=gs://bucket/sets/y.zip does not exist"):
        fetch("gs://bucket/sets/y.zip")


def test_inception_from_a_bucket(server):
    server.put("networks/graph.pb", b"no graph")
    where = "gs://bucket/networks/graph.pb"
    config = recipes.resolve(dict(batch_size=8))
    options = evaluator.EvaluationOptions("inception", where, num_samples=100, seed=0)
    with pytest.raises(UsageError, match=rf"--inception_path={where} is not the Inception network"):
        evaluator.create_evaluator(config, sources.load(config), options)


def test_results_of_an_evaluation_are_uploaded_to_the_run(server):
    Job().run(1)
    folder = download_run(RUN)
    write_text(folder / "evaluation.json", "{}")
    (folder / "evaluation").mkdir()
    write_text(folder / "evaluation" / "classes.png", "picture")
    for _ in range(2):  # the second upload replaces the first
        location.upload_outputs(RUN, folder, ["evaluation.json", "evaluation", "none"])
    there = server.objects["bucket"]
    assert there["runs/one/evaluation.json"].content == b"{}"
    assert there["runs/one/evaluation/classes.png"].content == b"picture"


def test_results_are_kept_locally_without_write_permission(server, caplog):
    Job().run(1)
    folder = download_run(RUN)
    write_text(folder / "evaluation.json", "{}")
    server.faults = [Fault(403, "upload", times=99)]
    location.upload_outputs(RUN, folder, ["evaluation.json"])
    found = folder.with_name(folder.name + "-found")
    assert f"are kept in {found}" in caplog.text
    download_run(RUN)  # removes from the copy what the bucket does not hold
    assert (found / "evaluation.json").read_text() == "{}"


def test_user_images_from_a_bucket(server, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (16, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    server.put("sets/x.npz", (tmp_path / "x.npz").read_bytes())
    data = sources.load(recipes.resolve(dict(dataset="gs://bucket/sets/x.npz", batch_size=8)))
    assert (data.images[..., 0] == x).all()


def test_named_data_sets_from_a_bucket(server, data_dir, tmp_path):
    for path in Path(data_dir).rglob("*-ubyte.gz"):
        server.put(f"sets/{path.relative_to(data_dir).as_posix()}", path.read_bytes())
    for path in Path(data_dir).rglob("*mnist.npz"):
        server.put(f"sets/{path.relative_to(data_dir).as_posix()}", path.read_bytes())
    server.put("sets/other", CONTENT)
    local = sources.load(recipes.resolve(dict(dataset="mnist", data_dir=data_dir, split="test")))
    config = recipes.resolve(dict(dataset="mnist", data_dir="gs://bucket/sets", split="test"))
    assert (sources.load(config).images == local.images).all()
    assert ("download", "sets/other") not in server.log
