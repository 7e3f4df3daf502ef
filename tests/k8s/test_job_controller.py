"""The model of the Job controller delays Pods as Kubernetes does."""

import time
import types

import pytest

from tests.helpers import manifests as k8s
from tests.helpers.job_controller import FIRST_DELAY_SECS, SPEED, BackOff, Job


def test_the_delay_doubles_from_ten_seconds_to_ten_minutes():
    back_off, delays = BackOff(lambda: 0.0), []
    assert back_off.remaining_secs() == 0
    for _ in range(9):
        back_off.failed()
        delays.append(back_off.remaining_secs())
    assert delays == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    back_off.succeeded()
    assert back_off.remaining_secs() == 0


def test_the_delay_begins_at_the_last_failure():
    now = [100.0]
    back_off = BackOff(lambda: now[0])
    back_off.failed()
    now[0] += 4
    assert back_off.remaining_secs() == 6
    back_off.failed()
    assert back_off.remaining_secs() == 20
    now[0] += 25
    assert back_off.remaining_secs() == 0


@pytest.mark.parametrize(
    ("code", "conditions", "counted"),
    [(42, set(), 0), (143, {"DisruptionTarget"}, 0), (1, set(), 1)],
)
def test_ignored_failures_delay_the_next_pod_too(tmp_path, code, conditions, counted):
    job = Job(k8s.render("overlays/single-node"), tmp_path, tmp_path)
    job.back_off = BackOff(lambda: 0.0)
    ended = types.SimpleNamespace(index=0, exit_code=code, conditions=conditions)
    for _ in range(2):
        job._handle_exit(ended)
    assert job.back_off.remaining_secs() == 20
    assert job.failed == 2 * counted
    ended.exit_code = 0
    job._handle_exit(ended)
    assert job.back_off.remaining_secs() == 0


def test_a_pod_that_ends_with_42_is_replaced_after_the_delay(tmp_path):
    manifests = k8s.render("overlays/single-node")
    container = k8s.trainer_of(manifests)
    container["command"] = ["sh"]
    container["args"] = ["-c", "test -e /runs/began || { touch /runs/began; exit 42; }"]
    job = Job(manifests, tmp_path / "claims", tmp_path / "pods")
    began = time.monotonic()
    job.wait(timeout=60)
    assert (job.condition, job.exit_codes, job.failed) == ("Complete", [42, 0], 0)
    assert time.monotonic() - began >= FIRST_DELAY_SECS / SPEED
