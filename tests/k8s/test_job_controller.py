"""The model of the Job controller treats ended Pods as Kubernetes does."""

import time
import types

import pytest

from tests.helpers import manifests as k8s
from tests.helpers.job_controller import BACKOFF_SECS, Job


@pytest.mark.parametrize(
    ("code", "conditions", "counted"),
    [(42, set(), 0), (143, {"DisruptionTarget"}, 0), (1, set(), 1)],
)
def test_ignored_failures_lengthen_the_delay_and_a_success_resets_it(
    tmp_path, code, conditions, counted
):
    job = Job(k8s.render("overlays/single-node"), tmp_path, tmp_path)
    ended = types.SimpleNamespace(index=0, exit_code=code, conditions=conditions)
    for _ in range(2):
        job._handle_exit(ended)
    assert job._failures == 2
    assert job.failed == 2 * counted
    ended.exit_code = 0
    job._handle_exit(ended)
    assert job._failures == 0


def test_a_pod_that_ends_with_42_is_replaced_after_the_delay(tmp_path):
    manifests = k8s.render("overlays/single-node")
    container = k8s.trainer_of(manifests)
    container["command"] = ["sh"]
    container["args"] = ["-c", "test -e /runs/began || { touch /runs/began; exit 42; }"]
    job = Job(manifests, tmp_path / "claims", tmp_path / "pods")
    began = time.monotonic()
    job.wait(timeout=60)
    assert (job.condition, job.exit_codes, job.failed) == ("Complete", [42, 0], 0)
    assert time.monotonic() - began >= BACKOFF_SECS
