"""Sets larger than memory: the cache of shards, its limits, several processes, and the order."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.pictures import load
from tests.helpers.runs import records
from trainer import recipes
from trainer.data import decoding, order, picture_cache, pipeline, sources, user_images
from trainer.data.file_stores import Archive, Folder
from trainer.data.images import ImageSet
from trainer.data.listing import list_data_set
from trainer.errors import StorageError
from trainer.evaluation import classifier
from trainer.evaluation.features import in_batches
from trainer.files import cache, mounts, shards, shared_entries
from trainer.files.shards import Layout, MappedImages, MappedShards, ShardFolder
from trainer.machine import memory

COUNT = 40


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 6 * 8 * 8)  # of six images, so seven shards
    return Layout.of(COUNT, (8, 8, 1))


@pytest.fixture
def place(tmp_path):
    for k in range(COUNT):
        path = tmp_path / "pics" / "ab"[k % 2] / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 5 * k).save(path)
    return tmp_path / "pics"


@pytest.fixture
def streamed(monkeypatch):
    monkeypatch.setattr(user_images, "MAX_IN_MEMORY", 0)


def test_a_set_larger_than_memory_is_read_from_shards(place, small_shards, tmp_path, monkeypatch):
    held = load(place)
    assert isinstance(held.images, np.ndarray)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    data = load(place)
    assert isinstance(data.images, MappedImages)
    assert small_shards.shards == 7
    assert data.images.shape == held.images.shape
    assert data.fingerprint == held.fingerprint  # so that a run moves between machines
    for index in (3, -1, slice(5, 30, 3), np.array([[39, 0], [7, 7]]), data.labels == 1):
        np.testing.assert_array_equal(data.images[index], held.images[index])
    test = data.part(data.labels == 1)
    assert isinstance(test.images, MappedImages)
    np.testing.assert_array_equal(np.asarray(test.images), held.images[held.labels == 1])
    rows = np.array([9, 2, 30])
    np.testing.assert_array_equal(
        np.concatenate(list(in_batches(data.images, rows))), held.images[rows]
    )


def test_the_fingerprint_is_computed_once(place, streamed, monkeypatch):
    first = load(place).fingerprint
    monkeypatch.setattr(MappedImages, "digest_rows", lambda *_: pytest.fail("read again"))
    assert load(place).fingerprint == first


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_streamed_batches_equal_those_from_memory(
    place, small_shards, monkeypatch, replicas, shuffle
):
    held = load(place)
    monkeypatch.setattr(user_images, "MAX_IN_MEMORY", 0)
    plan = pipeline.BatchPlan(
        seed=1, batch_size=8, batches_per_step=2, first_step=2, shuffle=shuffle
    )

    def batches(data):
        made = pipeline.batches(data, plan, replicas=range(replicas), num_replicas=replicas)
        return [[part.numpy() for part in batch] for batch in made.take(6)]

    for mine, theirs in zip(batches(load(place)), batches(held), strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


@pytest.mark.parametrize(("size", "block"), [(40, 4), (41, 4), (7, 9), (5, 1)])
def test_blocks_are_permuted_and_mixed_within_windows(monkeypatch, size, block):
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 2)
    steps = list(order.steps(3, size, size, 0, block=block).take(3))
    epochs = [step.numpy() for step in steps]
    assert [sorted(epoch) for epoch in epochs] == [list(range(size))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for epoch in epochs:  # a window has the images of two blocks, and of one more if one is short
        for start in range(0, size, 2 * block):
            assert len(set(epoch[start : start + 2 * block] // block)) <= 3
    later = [step.numpy() for step in order.steps(3, size, size, 1, block=block).take(2)]
    np.testing.assert_array_equal(epochs[1:], later)


def test_shuffle_auto_is_resolved_by_the_disk(place, streamed, monkeypatch, caplog):
    data = load(place)
    config = recipes.resolve(dict(dataset=str(place), batch_size=4))
    assert sources.adapt(config, data, ()).shuffle == "full"
    mount = "1 0 0:1 / / rw - ext4 d rw\n2 1 0:2 / {} rw shared:3 - {} server rw\n"
    monkeypatch.setattr(mounts, "MOUNTS", place / "mountinfo")
    for kind, shuffle in (
        ("nfs4", "blocks"),
        ("fuse.gcsfuse", "blocks"),
        ("fuse.fuse-overlayfs", "full"),
        ("xfs", "full"),
    ):
        (place / "mountinfo").write_text(mount.format(place.parent, kind))
        assert sources.adapt(config, data, ()).shuffle == shuffle
    asked = config.replace(shuffle="full")
    (place / "mountinfo").write_text(mount.format(place.parent, "nfs"))
    assert sources.adapt(asked, data, ()).shuffle == "full"


# Filling.


FILL = """
import sys
from trainer import recipes
from trainer.data import decoding, sources
from trainer.files import shards

shards.SHARD_BYTES = 6 * 8 * 8
decode, count = decoding.decode, 0

def slow(*arguments):
    import time
    global count
    count += 1
    time.sleep(float(sys.argv[2]))
    return decode(*arguments)

decoding.decode = slow
data = sources.load(recipes.resolve(dict(dataset=sys.argv[1], batch_size=1)))
print(count, data.fingerprint)
"""


def fill(place, pause):
    return subprocess.Popen(
        [sys.executable, "-c", FILL, str(place), str(pause)], stdout=subprocess.PIPE, text=True
    )


def complete_shards(cache_home):
    return len(list(cache_home.glob("pictures-*/shard-*.json")))


def test_a_killed_process_leaves_its_shards_and_several_share_the_rest(place, cache_home):
    first = fill(place, 0.02)
    deadline = time.monotonic() + 60
    while complete_shards(cache_home) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    left = complete_shards(cache_home)
    assert 2 <= left < 7
    others = [fill(place, 0.02) for _ in range(2)]
    answers = [other.communicate(timeout=60)[0].split() for other in others]
    decoded = [int(count) for count, _ in answers]
    assert sum(decoded) == COUNT - 6 * left  # none twice, and none of the first process again
    assert {fingerprint for _, fingerprint in answers} == {load(place).fingerprint}
    names = {path.name for path in cache_home.glob("pictures-*/*")}
    assert not [name for name in names if name.startswith(".part-")]


def test_changed_shards_are_verified_and_only_the_damaged_one_is_decoded_again(
    place, small_shards, streamed, cache_home, caplog, monkeypatch
):
    monkeypatch.setattr(picture_cache, "ALWAYS_VERIFIED", 0)
    first = load(place).fingerprint
    (shard,) = cache_home.glob("pictures-*/shard-00003.u8")
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    decoded = []
    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *given: decoded.append(1) or decode(*given))
    assert load(place).fingerprint == first
    assert len(decoded) == 6
    assert "shard-00003.u8 does not match its checksum" in caplog.text


def test_pictures_that_cannot_be_read_leave_no_gap(place, small_shards, streamed):
    (place / "a" / "06.png").write_bytes(b"")
    content = (place / "b" / "09.png").read_bytes()
    (place / "b" / "09.png").write_bytes(content[:-30])
    for _ in ("decoded", "cached"):
        data = load(place, skip_bad_images=True)
        assert len(data) == COUNT - 2
        values = data.images[:][:, 0, 0, 0] // 5
        np.testing.assert_array_equal(values % 2, data.labels)
        assert sorted(values) == sorted(set(range(COUNT)) - {6, 9})


def test_the_least_recently_used_pictures_are_removed(place, small_shards, tmp_path, streamed):
    cache_dir = tmp_path / "shared"
    size = 20_000 / 2**30  # of four entries: of some 4,000 bytes each

    def entries():
        return {path.name for path in cache_dir.glob("pictures-*")}

    (cache_dir / "0123").mkdir(parents=True)
    (cache_dir / "0123" / shared_entries.OLD_IMAGES).write_bytes(bytes(30_000))
    kept = load(place, cache_dir=str(cache_dir), cache_gib=size)
    assert not (cache_dir / "0123").exists()  # of a former version
    in_use = entries()
    for k in range(6):
        load(place, cache_dir=str(cache_dir), cache_gib=size, image_size=9 + k)
        total = sum(p.stat().st_size for p in cache_dir.rglob("*"))
        assert in_use <= entries()
    assert len(entries()) < 7
    assert kept.images[0].shape == (8, 8, 1)
    assert total < 60_000


def test_no_room_is_an_error_only_if_memory_is_too_small(place, streamed, monkeypatch, caplog):
    data = load(place, cache_gib=1e-7)
    assert isinstance(data.images, np.ndarray)
    assert "Cannot cache the decoded images in" in caplog.text
    assert "of the cache are free). Set --cache_dir or --cache_gib." in caplog.text
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(StorageError, match=r"do not fit into memory\. Free some"):
        load(place, cache_gib=1e-7)


# A run.


def test_a_run_from_shards_equals_one_from_memory(place, tiny, run, tmp_path, monkeypatch):
    for k in range(COUNT):  # large enough for the networks
        path = place / "ab"[k % 2] / f"{k:02}.png"
        Image.new("L", (16, 16), 5 * k).save(path)
    held = tiny(
        dataset=str(place), length="3 steps", log_every_steps=1, run_dir=str(tmp_path / "held")
    )
    run(held)
    monkeypatch.setattr(user_images, "MAX_IN_MEMORY", 0)
    run(held.replace(run_dir=str(tmp_path / "streamed")))
    mine, theirs = records(tmp_path / "streamed"), records(tmp_path / "held")
    assert [r["d_loss"] for r in mine] == [r["d_loss"] for r in theirs]
    assert "is complete" in run(held)  # the set moved out of memory, and is the same


def test_the_classifier_of_a_streamed_set_equals_that_from_memory():
    rng = np.random.default_rng(0)
    labels = np.arange(64, dtype=np.int32) % 2
    images = rng.integers(0, 256, (64, 8, 8, 1), np.uint8)
    weights = []
    for source in (images, mapped(images)):
        data = ImageSet(source, labels, ("a", "b"))
        network = classifier.build(data.shape)
        classifier.train(network, data, 2 * classifier.BATCH, lambda: None)
        weights.append(network.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def mapped(images, folder=None):
    layout = Layout(len(images), images.shape[1:], 10)
    parts = [images[list(layout.rows_of(n))] for n in range(layout.shards)]
    shards_folder = ShardFolder(folder or shards.Path("."), layout)
    return MappedImages(MappedShards(shards_folder, parts), np.arange(len(images)))


def test_a_sparse_set_stays_out_of_memory(tmp_path):
    layout = Layout.of(20_000, (64, 64, 3))
    folder = ShardFolder(tmp_path, layout)
    for n in range(layout.shards):
        size = len(layout.rows_of(n)) * 64 * 64 * 3
        with open(tmp_path / f"shard-{n:05d}.u8", "wb") as file:
            file.truncate(size)
    before = anonymous_bytes()
    maps = [folder.map(n, is_read_in_order=False) for n in range(layout.shards)]
    data = MappedImages(MappedShards(folder, maps), np.arange(layout.rows))
    for start in range(0, layout.rows, 500):
        assert not data[start : start + 500].any()
    assert anonymous_bytes() - before < 50 << 20  # of 246 MB


def anonymous_bytes():
    text = open(f"/proc/{os.getpid()}/status", encoding="ascii").read()
    fields = dict(line.split(":") for line in text.splitlines())
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))


def test_entries_of_the_cache_are_described(place, cache_home):
    load(place)
    (entry,) = cache_home.iterdir()
    plan = json.loads((entry / "plan.json").read_text())
    assert (plan["rows"], plan["shape"], plan["version"]) == (COUNT, [8, 8, 1], 4)


def test_listing_files_takes_little_memory(tmp_path):
    """So five million pictures are listed within one gigabyte."""
    count = 5_000
    for number in range(count):
        path = tmp_path / f"{number % 10}" / f"{number:08d}.png"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    tracemalloc.start()
    try:
        store = Folder(tmp_path)
        listing = list_data_set(store, tmp_path, "it")
        listing.select("train")
        cache.digest(f"{name} {store.stamp(name)}" for name in listing.names)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(listing.names) == count
    assert peak < 220 * count


def test_threads_share_one_archive(tmp_path):
    """Checks that each file is read right, and that only one list of the files is in memory."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(300):
            archive.writestr(f"{number}.bin", bytes([number % 256]) * (1000 + number))
    store = Archive(path)

    def is_right(name: str) -> bool:
        number = int(name.removesuffix(".bin"))
        with store.open(name) as file:
            return file.read() == bytes([number % 256]) * (1000 + number)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, list(store.names) * 5))
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert opened.count(str(path)) == 1
    store.close()
