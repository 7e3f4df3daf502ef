"""Tests of named data sets, damaged files, the order of the images and the input pipeline."""

import gzip
import pickle
import struct
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer import recipes
from trainer.data import order, pipeline, sources
from trainer.data.form import Form, shape_arrays
from trainer.data.images import ImageSet
from trainer.errors import DataError, StorageError
from trainer.machine import memory
from trainer.training.data_wait import DataWaitTimer

RNG = np.random.default_rng(0)


def config(**given):
    return recipes.resolve(dict(batch_size=4, **given))


def test_digits_are_the_uci_set():
    datasets = pytest.importorskip("sklearn.datasets")
    published = datasets.load_digits()
    data = sources.SOURCES["digits"].read(Path(), ("train", "test"))
    np.testing.assert_array_equal(data[0][..., 0], np.rint(published.images * (255 / 16)))
    np.testing.assert_array_equal(data[1], published.target)
    loaded = sources.load(config(dataset="digits", split="all"))
    assert loaded.images.shape == (1797, 28, 28, 1)
    assert (loaded.shape.size, loaded.shape.channels, loaded.shape.classes) == (28, 1, 10)


@pytest.fixture
def gray():
    return {
        split: (
            RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            RNG.integers(0, 10, count, dtype=np.uint8),
        )
        for split, count in (("train", 12), ("test", 5))
    }


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


def write_idx_set(folder, gray):
    folder.mkdir(exist_ok=True)
    for split, name in (("train", "train"), ("test", "t10k")):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", gray[split][0])
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", gray[split][1])


@pytest.mark.parametrize("form", ["npz", "loose", "folder"])
def test_mnist_in_its_published_forms(tmp_path, gray, form):
    if form == "npz":
        arrays = {f"{xy}_{s}": gray[s][i] for s in gray for i, xy in enumerate("xy")}
        np.savez(tmp_path / "mnist.npz", **arrays)
    else:
        write_idx_set(tmp_path if form == "loose" else tmp_path / "mnist", gray)
    data = sources.load(config(dataset="mnist", data_dir=str(tmp_path)))
    np.testing.assert_array_equal(data.images[..., 0], gray["train"][0])
    np.testing.assert_array_equal(data.labels, gray["train"][1])
    merged = sources.load(config(dataset="mnist", data_dir=str(tmp_path), split="all"))
    assert len(merged) == 17


def write_cifar(folder, batches):
    folder.mkdir()
    for name, (rows, labels) in batches.items():
        (folder / name).write_bytes(pickle.dumps({b"data": rows, b"labels": labels}, protocol=2))


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_cifar_in_its_published_forms(tmp_path, form):
    names = [f"data_batch_{k}" for k in range(1, 6)]
    rows = {name: RNG.integers(0, 256, (3, 3072), dtype=np.uint8) for name in names}
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, {name: (rows[name], [0, 5, 9]) for name in names})
    if form == "tar":
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)
        for name in names:
            (folder / name).unlink()
        folder.rmdir()
    data = sources.load(config(dataset="cifar10", data_dir=str(tmp_path)))
    assert data.images.shape == (15, 32, 32, 3)
    first = rows["data_batch_1"][0].reshape(3, 32, 32)
    np.testing.assert_array_equal(data.images[0, :, :, 2], first[2])  # blue is the last plane
    np.testing.assert_array_equal(data.labels[:3], [0, 5, 9])


class Bomb:
    def __reduce__(self):
        return (print, ("this pickle ran code",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    write_cifar(tmp_path / "cifar-10-batches-py", {"data_batch_1": (Bomb(), [0])})
    with pytest.raises(DataError, match="print, which is not data"):
        sources.load(config(dataset="cifar10", data_dir=str(tmp_path)))
    assert "ran code" not in capsys.readouterr().out


def test_damaged_files_are_named(tmp_path, gray):
    path = tmp_path / "mnist.npz"
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match=r"mnist\.npz cannot be read .*\. Replace it"):
        sources.load(config(dataset="mnist", data_dir=str(tmp_path)))
    path.unlink()
    write_idx_set(tmp_path, gray)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        sources.load(config(dataset="mnist", data_dir=str(tmp_path)))
    write_idx(images, gray["train"][0])
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.full(12, 10, np.uint8))
    with pytest.raises(DataError, match="the labels range from 10 to 10, not from 0 to 9"):
        sources.load(config(dataset="mnist", data_dir=str(tmp_path)))


def test_a_failed_download_names_file_place_and_origin(tmp_path, monkeypatch):
    import keras

    def fail():
        raise OSError("no network")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    with pytest.raises(StorageError) as error:  # another try may succeed
        sources.load(config(dataset="cifar10", data_dir=str(tmp_path)))
    message = str(error.value)
    for part in (
        "cifar-10-python.tar.gz",
        f"--data_dir={tmp_path}",
        "cs.toronto.edu",
        "no network",
    ):
        assert part in message


def test_fewer_images_than_a_batch_is_an_error(tmp_path, gray):
    write_idx_set(tmp_path, gray)
    with pytest.raises(DataError, match="has 12 images, fewer than --batch_size=13"):
        sources.load(config(dataset="mnist", data_dir=str(tmp_path)).replace(batch_size=13))


def test_resize_keeps_flat_images_flat():
    images = np.full((2, 8, 8, 3), 77, np.uint8)
    assert (shape_arrays(images, Form(28, 28, 3)) == 77).all()
    assert shape_arrays(images, Form(28, 28, 3)).shape == (2, 28, 28, 3)


def take(dataset, count):
    return [x.numpy() for x in dataset.take(count)]


def test_every_epoch_is_a_permutation_and_no_image_is_dropped():
    size, per_step = 10, 4
    positions = np.concatenate(take(order.steps(3, size, per_step, 0), 15))
    epochs = positions.reshape(6, size)
    for epoch in epochs:
        assert sorted(epoch) == list(range(size))
    assert len({tuple(epoch) for epoch in epochs}) == 6
    other = np.concatenate(take(order.steps(4, size, per_step, 0), 15))
    assert (other != positions).any()


@pytest.mark.parametrize(("size", "per_step"), [(10, 4), (10, 10), (4, 9), (7, 1)])
def test_order_is_a_function_of_the_position(size, per_step):
    whole = take(order.steps(0, size, per_step, 0), 12)
    later = take(order.steps(0, size, per_step, 5), 7)
    np.testing.assert_array_equal(whole[5:], later)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_replicas_share_the_global_batch_in_order(replicas):
    data = ImageSet(
        np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1), np.zeros(20, np.int32), ("0",)
    )

    plan = pipeline.BatchPlan(seed=1, batch_size=8, batches_per_step=2, first_step=2)

    def batches(serving: range, count: int) -> tf.data.Dataset:
        return pipeline.batches(data, plan, replicas=serving, num_replicas=count)

    whole = [images.numpy() for images, _ in batches(range(1), 1).take(3)]
    shares = [images.numpy() for images, _ in batches(range(replicas), replicas).take(3 * replicas)]
    for step, batch in enumerate(whole):
        mine = shares[step * replicas : (step + 1) * replicas]
        np.testing.assert_array_equal(np.concatenate(mine, axis=1), batch)
    # One of several workers computes only its own share.
    last = next(iter(batches(range(replicas - 1, replicas), replicas)))[0]
    np.testing.assert_array_equal(last, shares[replicas - 1])


def test_what_steps_wait_for_slow_data_is_counted():
    def late(index):
        time.sleep(0.02)
        return index

    def slow(index):
        return tf.ensure_shape(tf.numpy_function(late, [index], tf.int64), [])

    watch = DataWaitTimer()
    elements = iter(tf.data.Dataset.range(100).map(slow).prefetch(2))

    @tf.function(autograph=False)
    def total():
        def body(k, so_far):
            return k + 1, so_far + watch.timed(lambda: next(elements), k)

        return tf.while_loop(lambda k, _: k < 20, body, (0, tf.constant(0, tf.int64)))[1]

    assert total().numpy() == sum(range(20))
    assert 0.01 < watch.mean_secs() < 1.0  # at 3 of 20 elements, of 0.02 seconds each
    assert watch.mean_secs() == 0.0


def test_a_named_set_too_large_for_memory_is_named(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**20)
    with pytest.raises(DataError, match=r"--dataset=digits: 1,500 images 640x640x1 need .* GiB"):
        sources.load(config(dataset="digits", image_size=640))
