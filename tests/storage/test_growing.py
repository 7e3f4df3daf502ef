"""Growing files in a bucket: what is sent, and what happens when an append fails."""

import pytest

from tests.helpers.fake_gcs import Fault
from trainer.storage import bucket as bucket_module
from trainer.storage import growing, mirror
from trainer.storage.address import Address
from trainer.storage.bucket import Bucket, ConflictError

NAME = "runs/one/metrics.jsonl"


@pytest.fixture
def server(gcs, monkeypatch):
    monkeypatch.setattr(bucket_module, "FIRST_WAIT_SECS", 0.01)
    monkeypatch.setattr(bucket_module, "RETRY_SECS", 1.0)
    return gcs


@pytest.fixture
def bucket(server):
    return Bucket(Address("bucket", "runs/one", "run_dir"))


def test_at_most_twice_the_bytes_of_growing_files_are_sent(server, bucket, tmp_path):
    """Each pass of the mirror finds one more line in metrics.jsonl, as in a week of training."""
    there = mirror.Mirror(bucket, tmp_path, {}, keep=1, max_failed=3, check_ownership=lambda: None)
    path = tmp_path / "metrics.jsonl"
    for number in range(60):
        with path.open("a") as file:
            file.write(f"line {number} ".ljust(500, "x") + "\n")
        there._run_pass(None, ending=False)
    content = path.read_bytes()
    assert server.objects["bucket"][NAME].content == content
    sent = sum(server.received.values())
    assert sent <= 2 * len(content), f"{sent / len(content):.1f} times the size"
    assert server.names() == [NAME]  # nothing is left of the parts


@pytest.mark.parametrize("kind", ["corrupt", "lost", 503, 404])
def test_a_failed_append_loses_nothing(server, bucket, kind):
    first, second = b"first line\n" * 9, b"first line\n" * 9 + b"second\n"
    known = growing.write(bucket, "metrics.jsonl", first, None)
    server.faults = [Fault(kind, "compose", times=1)]
    item = growing.write(bucket, "metrics.jsonl", second, known)
    assert server.objects["bucket"][NAME].content == second
    assert item.generation == server.objects["bucket"][NAME].generation
    assert server.names() == [NAME]


@pytest.mark.parametrize("fault", [None, Fault("corrupt", "download", times=1)])
def test_large_objects_are_downloaded_in_parts(server, bucket, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(bucket_module, "CHUNKED_BYTES", 1000)
    monkeypatch.setattr(bucket_module, "CHUNK_BYTES", 1000)
    content = bytes(range(256)) * 20
    item = bucket.upload("big", content, generation=0)
    server.faults = [fault] if fault else []
    bucket.download(item, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == content
    assert server.log.count(("download", "runs/one/big")) == (12 if fault else 6)
    server.put("runs/one/big", content[::-1])
    with pytest.raises(ConflictError):
        bucket.download(item, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == content


def test_content_that_was_replaced_is_sent_whole_and_other_writers_are_noticed(server, bucket):
    known = growing.write(bucket, "metrics.jsonl", b"old content, cut\n" * 3, None)
    known = growing.write(bucket, "metrics.jsonl", b"new content, longer\n" * 3, known)
    assert ("compose", NAME) not in server.log
    server.put(NAME, b"by another job")
    with pytest.raises(ConflictError):
        growing.write(bucket, "metrics.jsonl", b"new content, longer\n" * 4, known)
    assert server.objects["bucket"][NAME].content == b"by another job"
