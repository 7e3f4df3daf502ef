"""Schedules as text, their values on the host and in TensorFlow, and the published ones."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import schedules
from trainer.config.schedules import Schedule
from trainer.models.schedules import current

PUBLISHED = json.loads(
    (Path(__file__).parents[1] / "golden/r3gan-schedules.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", ["CIFAR10", "FFHQ-64", "ImageNet-32"])
def test_published_schedules_of_r3gan_are_reproduced(name):
    table = PUBLISHED[name]
    for quantity, (start, end) in table["start_end"].items():
        text = f"cosine {start} {end} over {table['decay_images'] / 1000} kimg"
        schedule = schedules.parse(text)
        for row in table["rows"]:
            expected, kimg = row[quantity], 1000 * row["mimg"]
            assert schedule.at(kimg) == pytest.approx(expected, rel=1e-12)
            on_device = current(schedule, tf.constant(1000 * kimg, tf.int64))
            assert float(on_device) == pytest.approx(expected, rel=1e-6, abs=1e-7 * max(start, end))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.5", [0.5, 0.5, 0.5, 0.5]),
        ("linear 1 0.2 over 4 kimg", [1.0, 0.8, 0.2, 0.2]),
        ("linear 0 1e-3 over 4 kimg", [0.0, 2.5e-4, 1e-3, 1e-3]),
        ("cosine 1 0 over 4 kimg", [1.0, 0.5 + 0.5 * math.cos(math.pi / 4), 0.0, 0.0]),
        ("inverse_time 0.6 0.5 per kimg", [0.6, 0.4, 0.2, 0.1]),
    ],
)
def test_values_on_the_host_and_in_tensorflow(text, values):
    parsed = schedules.parse(text)
    assert schedules.parse(str(parsed)) == parsed
    for images, expected in zip((0, 1000, 4000, 10000), values, strict=True):
        host = parsed.at(images / 1000) if isinstance(parsed, Schedule) else parsed
        assert host == pytest.approx(expected)
        value = current(parsed, tf.constant(images, tf.int64))
        assert value.dtype == tf.float32
        np.testing.assert_allclose(value, host, rtol=3e-7, atol=1e-7)


def test_a_share_of_the_run_becomes_kimg_once():
    schedule = Schedule.parse("cosine 2e-4 0 over 62.5%")
    assert str(schedule) == "cosine 0.0002 0 over 62.5% of the run"
    resolved = schedule.in_kimg(300_000)
    assert str(resolved) == "cosine 0.0002 0 over 187.5 kimg (62.5% of the run)"
    assert Schedule.parse(str(resolved)) == resolved
    assert resolved.in_kimg(600_000) == resolved
    assert schedules.kept(schedule, resolved) == resolved
    other = Schedule.parse("cosine 2e-4 0 over 60%")
    assert schedules.kept(other, resolved) == other
    in_kimg = Schedule.parse("cosine 2e-4 0 over 187.5 kimg")
    assert schedules.kept(in_kimg, resolved) == in_kimg


@pytest.mark.parametrize(
    "text",
    [
        "", "fast", "linear", "linear 1 2", "linear 1 2 over 3", "linear 1 2 over 3 steps",
        "linear 1 2 over 0 kimg", "linear 1 2 over -3 kimg", "linear 1 2 over inf kimg",
        "linear 1 2 over 0%", "linear 1 2 over 101%", "linear 1 b over 3 kimg",
        "inverse_time 1 2", "inverse_time 1 0 per kimg", "step 1 2 over 3 kimg",
        "linear 1 2 over 3 kimg of the run", "cosine 1 2 over nan%",
    ],
)  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"."):
        schedules.parse(text)
