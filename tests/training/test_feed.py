"""Images in the memory of the devices: the same batches as those of the pipeline."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.helpers.runs import trajectory
from trainer.config.settings import Duration
from trainer.data import sources
from trainer.errors import UsageError
from trainer.machine import devices, memory
from trainer.machine.replicas import Replicas, create_replicas
from trainer.training import feed


def batches_of(config, here):
    """Returns the images [steps, d_steps, N, H, W, C] and the labels that steps 3 to 5 receive."""
    data = sources.load(config)
    resident = feed.resident_images(config, data, here)
    assert (resident is not None) == (config.data_on_device == "on")
    source = feed.open_feed(config, data, here, first_step=3, resident=resident)

    @tf.function(autograph=False)
    def step():
        def on_replica(received, labels):
            return source.read(received), labels

        parts = here.strategy.run(on_replica, args=source.take(tf.constant(0)))
        return [tf.concat(here.strategy.experimental_local_results(part), 1) for part in parts]

    steps = [step() for _ in range(3)]
    return [np.stack(each) for each in zip(*steps, strict=True)]


@pytest.mark.parametrize("path", ["one GPU", "two devices"])
def test_every_path_feeds_the_same_images_in_the_same_order(tiny, monkeypatch, path):
    config = tiny(devices="cpu:1", d_steps=2, repeat_reals=False)
    one = create_replicas(config)
    expected = batches_of(config.replace(data_on_device="off"), one)
    calls, strategy = [], tf.distribute.Strategy
    real = strategy.distribute_datasets_from_function
    monkeypatch.setattr(
        strategy, "distribute_datasets_from_function", lambda *args: calls.append(1) or real(*args)
    )
    # By another name, the device has the iterator of one GPU.
    other = dataclasses.replace(one, device_names=("/CPU:0",))
    if path == "two devices":
        other = create_replicas(config.replace(devices="cpu:2"))
    for choice in ("off", "on"):
        actual = batches_of(config.replace(data_on_device=choice), other)
        for values, wanted in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(values, wanted)
    assert len(calls) == 2


def test_images_of_a_folder_are_copied_to_the_devices(tiny, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(draw.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{number}.png")
    settings = dict(recipe="mlp", dataset=str(folder), cache_dir=str(tmp_path / "cache"))
    rows = [trajectory(tiny(data_on_device=on, **settings))[0] for on in ("off", "on")]
    np.testing.assert_array_equal(*rows)


def test_copies_are_made_where_they_fit(tiny, monkeypatch):
    class Set:
        images = np.zeros([10, 4, 4, 1], np.uint8)  # 160 bytes

    here = Replicas(None, ("CPU:0",), "float32", False)

    def is_copied(choice, *, on_gpus=True, capacity=10_000, free=10_000):
        monkeypatch.setattr(Replicas, "is_on_gpus", on_gpus)
        monkeypatch.setattr(devices, "smallest_memory", lambda names: capacity if on_gpus else None)
        monkeypatch.setattr(memory, "available_bytes", lambda: free)
        return feed.resident_images(tiny(data_on_device=choice), Set(), here) is not None

    assert is_copied("auto")
    assert not is_copied("off")
    assert not is_copied("auto", on_gpus=False)
    assert not is_copied("auto", capacity=639)
    assert not is_copied("auto", free=319)
    assert is_copied("on", on_gpus=False)
    assert is_copied("on", capacity=160)
    for limits in ({"capacity": 159}, {"free": 319}):
        with pytest.raises(UsageError, match=r"--data_on_device=on: the images take 0\.0 GiB"):
            is_copied("on", **limits)


def test_waiting_for_data_is_timed_on_cpus_or_if_asked(tiny, run, tmp_path, monkeypatch):
    def is_timed(name, **settings):
        config = tiny(
            recipe="mlp", length=Duration(1, "steps"), deterministic=False, xla="off",
            data_on_device="off", run_dir=str(tmp_path / name), **settings,
        )  # fmt: skip
        run(config)
        line = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        return "data_wait" in line

    assert is_timed("cpu")
    monkeypatch.setattr(Replicas, "is_on_gpus", True)
    assert not is_timed("gpu")
    assert is_timed("asked", time_data_wait=True)
