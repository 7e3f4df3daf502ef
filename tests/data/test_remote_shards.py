"""Prepared sets in buckets, whose blocks are downloaded ahead of use into a bounded cache."""

import time

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.fake_gcs import Fault
from tests.helpers.pictures import load
from trainer.config.settings import Duration
from trainer.data import pipeline, prepared_set, remote_shards, sources, user_images
from trainer.data.form import FormOptions
from trainer.data.preparing import join, part, prepare
from trainer.data.preparing.part import Part, Settings
from trainer.errors import StorageError
from trainer.files import shared_entries

COUNT, SIDE = 60, 16
IMAGE = SIDE * SIDE  # bytes
BLOCK = 600  # bytes, so that images lie across blocks


@pytest.fixture
def remote(monkeypatch, place, gcs):
    """Prepares a set of small blocks in a bucket, and returns its images."""
    for module in (part, join):
        monkeypatch.setattr(module, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(part, "SHARD_BYTES", 7 * IMAGE)
    monkeypatch.setattr(remote_shards, "MIN_ROOM", 3 * BLOCK)
    monkeypatch.setattr(prepared_set, "DOWNLOADED_FIRST", 0)
    monkeypatch.setattr(user_images, "MAX_IN_MEMORY", 0)
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE), np.uint8)
    np.savez(place / "a.npz", x=images, y=np.arange(COUNT) % 2)
    settings = Settings(options=FormOptions((SIDE, SIDE)))
    prepare.prepare(str(place / "a.npz"), "gs://bucket/set", settings, Part(), lambda *_: None)
    prepare.join_parts("gs://bucket/set", lambda *_: None)
    gcs.log.clear()
    return images[..., None]


def downloads(gcs):
    return [name for method, name in gcs.log if method == "download" and name.endswith(".u8")]


def steps(data, count, **plan):
    """Returns the images of the first steps of a run."""
    plan = pipeline.BatchPlan(seed=3, batch_size=8, batches_per_step=1, **plan)
    source = iter(pipeline.batches(data, plan, replicas=range(2), num_replicas=2))
    return np.concatenate([next(source)[0].numpy() for _ in range(2 * count)])


def entry(cache_home):
    (found,) = (cache_home / "buckets").glob("blocks-*")
    return found


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_batches_equal_those_of_a_set_on_a_disk(remote, cache_home, place, monkeypatch, shuffle):
    """Also if the cache has room for few of the blocks."""
    held = steps(load(place / "a.npz"), 12, shuffle=shuffle)
    limit = 8 * BLOCK
    data = load("gs://bucket/set", cache_gib=limit / 2**30)
    monkeypatch.setattr(remote_shards, "OPEN_BLOCKS", 2)
    np.testing.assert_array_equal(steps(data, 12, shuffle=shuffle), held)
    there = sum(file.stat().st_size for file in entry(cache_home).iterdir())
    assert 0 < there <= limit + remote_shards.THREADS * BLOCK  # those that arrive at once


def test_blocks_are_downloaded_before_they_are_needed(remote, gcs, cache_home, monkeypatch):
    # As on CPUs and with --deterministic, where tf.data does nothing ahead of its use if it finds
    # stateful operations.
    tf.config.experimental.enable_op_determinism()
    monkeypatch.setattr(pipeline, "STEPS_AHEAD", COUNT)
    data = load("gs://bucket/set")
    plan = pipeline.BatchPlan(seed=3, batch_size=1, batches_per_step=1)
    source = iter(pipeline.batches(data, plan, replicas=range(1), num_replicas=1))
    next(source)
    wanted = COUNT * IMAGE // BLOCK
    deadline = time.monotonic() + 20
    while len(list(entry(cache_home).glob("0*"))) < wanted:
        assert time.monotonic() < deadline, f"only {len(downloads(gcs))} blocks were asked for"
        time.sleep(0.05)


def test_a_run_that_starts_again_downloads_only_what_is_missing_or_damaged(remote, gcs, cache_home):
    np.testing.assert_array_equal(load("gs://bucket/set").images[:], remote)
    assert len(downloads(gcs)) == len(set(entry(cache_home).glob("0*")))
    gcs.log.clear()
    names = sorted(entry(cache_home).glob("0*"))
    names[0].unlink()
    names[1].write_bytes(b"")
    names[2].write_bytes(bytes([names[2].read_bytes()[0] ^ 1]) + names[2].read_bytes()[1:])
    np.testing.assert_array_equal(load("gs://bucket/set").images[:], remote)
    assert len(downloads(gcs)) == 3


def test_a_small_set_is_downloaded_first(remote, gcs, monkeypatch):
    monkeypatch.setattr(prepared_set, "DOWNLOADED_FIRST", 1 << 20)
    data = load("gs://bucket/set")
    gcs.log.clear()
    np.testing.assert_array_equal(data.images[:], remote)
    assert not downloads(gcs)


def test_damaged_transfers_are_repeated(remote, gcs):
    gcs.faults.append(Fault("corrupt", "download", r"\.u8", times=2))
    np.testing.assert_array_equal(load("gs://bucket/set").images[:], remote)
    gcs.faults.append(Fault("corrupt", "download", r"\.u8"))
    data = load("gs://bucket/set")
    for path in data.images.folder.glob("0*"):
        path.unlink()
    with pytest.raises(StorageError, match=r"shard-00000\.u8 does not match its checksum\. Run"):
        load("gs://bucket/set").images[:]


def test_a_run_trains_from_the_bucket_and_names_what_stops_it(remote, gcs, tiny, run):
    config = tiny(dataset="gs://bucket/set", length="3 steps")
    data = load("gs://bucket/set")
    assert sources.adapt(config, data, ()).shuffle == "blocks"
    config = config.replace(shuffle="blocks")
    run(config)
    for path in data.images.folder.glob("0*"):
        path.unlink()
    lost = [name for name in gcs.names("set/") if name.endswith(".u8")]

    def losing(*arguments):
        for name in lost:
            gcs.objects["bucket"].pop(name, None)
        return False

    with pytest.raises(StorageError, match=r"shard-0000.\.u8 was removed or replaced while"):
        run(config.replace(length=Duration(40, "steps")), stop_requested=losing)


def test_a_set_that_has_no_room_is_named(remote, monkeypatch):
    monkeypatch.setattr(shared_entries, "SPARE", 1 << 60)
    with pytest.raises(StorageError, match=r"cannot be kept in .* Free some disk space, set"):
        load("gs://bucket/set")
