"""Signs of collapse: when they are reported, and when they are over."""

import numpy as np
import pytest

from trainer.reporting.record import Measurements, Recorder, RecordPlan
from trainer.reporting.writers import Writer
from trainer.training.divergence import CollapseAlarm, CollapseDetector


class LineCollector(Writer):
    """Keeps the lines of a record."""

    def __init__(self):
        self.lines = []

    def line(self, line):
        self.lines.append(line)


def test_collapse_is_reported_once_after_it_has_lasted():
    detector = CollapseDetector(1000)
    assert [detector.observe_accuracy(k, 1.0) for k in (0, 500, 900)] == [""] * 3
    assert detector.observe_accuracy(1000, 1.0) == (
        "the discriminator classifies every image correctly, since 0 kimg"
    )
    assert not detector.observe_accuracy(1500, 1.0)  # reported only once
    assert not detector.observe_accuracy(2000, 0.9)
    assert not detector.observe_accuracy(2500, 1.0)
    assert detector.observe_accuracy(3500, 1.0)
    assert not detector.observe_diversity(0, 0.05)
    assert detector.observe_diversity(1200, 0.05) == "the samples are all alike, since 0 kimg"
    assert not CollapseDetector(0).observe_diversity(10**9, 0.0)


def test_collapse_is_over_when_there_is_no_sign_left(tiny):
    alarm = CollapseAlarm(tiny(collapse_kimg=1.0))
    states = []
    alarm.on_change = states.append
    alarm.observe_diversity(0, 0.05)
    alarm.observe_accuracy(0, 1.0)
    alarm.observe_diversity(1000, 0.05)
    alarm.observe_diversity(1500, 0.5)
    assert states == [True]  # the discriminator is still always right
    alarm.observe_accuracy(1600, 0.9)
    assert states == [True, False]


@pytest.mark.parametrize("earlier", [{}, {"collapse": 1.0}])
def test_lines_say_when_collapse_is_over(tiny, earlier):
    lines = [{"step": 1, "epoch": 0, **earlier}]
    plan = RecordPlan(
        names=("d_real_acc", "d_fake_acc"), steps=range(1, 9), batch_size=8, epoch_size=10**6,
        every_secs=0.0, every_steps=1,
    )  # fmt: skip
    measurements = Measurements(memory=dict, utilisation=lambda rate: 0.0, wait_secs=None)
    recorder = Recorder(plan, measurements, [collector := LineCollector()], lines)
    for present in (None, False, True, False):
        if present is not None:
            recorder.collapsed(present)
        recorder.observe(np.ones((1, 2)), 0.1)
    found = [line.get("collapse") for line in collector.lines]
    assert found == [*((1.0, 0.0) if earlier else (None, None)), 1.0, 0.0]
