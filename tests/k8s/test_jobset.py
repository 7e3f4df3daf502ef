"""What JobSet and the kubelet do with the trainer's exit codes, under the rendered policies."""

import functools
import itertools
import time
from collections.abc import Callable

import pytest

from tests.helpers import manifests as k8s
from tests.helpers.job_controller import BACKOFF_SECS, MAX_RESTART_SECS, Job
from tests.helpers.jobset_controller import (
    JobSet,
    ScriptedJob,
    trainer_without_progress,
    with_plain_job,
)
from trainer.errors import ExitCode
from trainer.run_dir.starts import MAX_STARTS

FINAL = [ExitCode.USAGE, ExitCode.DATA, ExitCode.DIVERGED, ExitCode.CHECKPOINT, ExitCode.BUSY]


@functools.cache
def rendered(overlay: str, *arguments: str) -> k8s.Manifests:
    return k8s.submit(f"--overlay={overlay}", *arguments)


MAX_STEPS = 20_000  # of a controller, several times as many as any test needs


def step_until(ended: Callable[[], object], controller: JobSet | ScriptedJob) -> None:
    """Steps a controller until `ended` holds; fails if it does not after MAX_STEPS."""
    for _ in range(MAX_STEPS):
        if ended():
            return
        controller.step()
    pytest.fail(f"has not ended after {MAX_STEPS} steps")


def replay(manifests: k8s.Manifests, script) -> JobSet:
    """Returns a JobSet of scripted processes at its end."""
    jobset = JobSet(manifests, lambda plain: ScriptedJob(plain, script))
    step_until(lambda: jobset.condition, jobset)
    return jobset


def replay_job(manifests: k8s.Manifests, script) -> ScriptedJob:
    """Returns a Job of scripted processes at its end."""
    job = ScriptedJob(manifests, script)
    step_until(lambda: job.condition and not job.running, job)
    return job


@pytest.mark.parametrize("code", FINAL)
def test_a_failure_that_a_retry_cannot_change_fails_the_jobset(code):
    jobset = replay(rendered("single-node", "--jobset"), lambda index: code)
    assert (jobset.condition, jobset.restarts) == ("Failed", 0)
    assert jobset.jobs[0].reason == "PodFailurePolicy"


def test_other_failures_restart_the_jobset_without_a_count_or_a_delay():
    codes = iter([42, 42, 143, 1, 137, 139, 42, 0])
    jobset = replay(rendered("single-node", "--jobset"), lambda index: next(codes))
    assert (jobset.condition, jobset.restarts, jobset.counted) == ("Completed", 7, 0)
    assert all(job.now < BACKOFF_SECS + 0.3 for job in jobset.jobs)


@pytest.mark.parametrize("code", [ExitCode.CRASH, ExitCode.STOPPED])
def test_the_trainers_own_limit_ends_a_jobset_that_makes_no_progress(code):
    codes = trainer_without_progress(code)
    jobset = replay(rendered("single-node", "--jobset"), lambda index: next(codes))
    assert (jobset.condition, jobset.restarts) == ("Failed", MAX_STARTS)
    assert jobset.jobs[-1].exit_codes == [ExitCode.DIVERGED]


def test_a_lost_worker_restarts_all_workers_once_the_others_have_ended():
    codes = iter([None, 137, None, 0, 0, 0])
    jobset = replay(rendered("multi-worker", "--workers=3", "--jobset"), lambda index: next(codes))
    lost, last = jobset.jobs
    assert (lost.reason, sorted(lost.exit_codes)) == ("BackoffLimitExceeded", [42, 42, 137])
    assert (jobset.condition, last.exit_codes) == ("Completed", [0, 0, 0])


def test_a_jobset_ends_at_the_deadline_of_its_job():
    jobset = JobSet(
        rendered("single-node", "--jobset"), lambda plain: ScriptedJob(plain, lambda index: None)
    )
    jobset.step()
    jobset.jobs[0].now = 604801.0
    for _ in range(3):
        jobset.step()
    assert (jobset.condition, jobset.jobs[0].reason) == ("Failed", "DeadlineExceeded")


RESTART = "--component=restart-in-place"


def test_exit_code_42_restarts_the_container_and_is_no_failure_of_the_job():
    codes = iter([42, 42, 42, 0])
    job = replay_job(rendered("single-node", RESTART), lambda index: next(codes))
    (pod,) = job.ended
    assert (job.condition, pod.restarts, job.failed, job._failures) == ("Complete", 3, 0, 0)
    # The first restart is at once; then the kubelet waits, too, although less than a Job.
    assert 3 * BACKOFF_SECS <= job.now < 3 * BACKOFF_SECS + 1


@pytest.mark.parametrize(("code", "reason"), [(1, ""), (64, "PodFailurePolicy")])
def test_other_exit_codes_end_the_pod(code, reason):
    codes = iter([42, code, 0])
    job = replay_job(rendered("single-node", RESTART), lambda index: next(codes))
    assert job.ended[0].exit_code == code
    assert job.ended[0].restarts == 1
    assert job.reason == reason
    assert len(job.ended) == (1 if reason else 2)


def test_a_pod_that_is_evicted_is_replaced_not_restarted():
    codes = iter([None, 0])
    job = ScriptedJob(rendered("single-node", RESTART), lambda index: next(codes))
    job.step()
    job.running[0].evict(job.grace_secs)
    step_until(lambda: job.condition, job)
    assert [(pod.exit_code, pod.restarts) for pod in job.ended] == [(42, 0), (0, 0)]
    assert job.failed == 0


def test_restarts_in_place_without_progress_end_with_the_trainers_limit():
    codes = trainer_without_progress(ExitCode.STOPPED)
    job = replay_job(rendered("single-node", RESTART), lambda index: next(codes))
    (pod,) = job.ended
    assert (job.reason, pod.exit_code, pod.restarts) == ("PodFailurePolicy", 70, MAX_STARTS)
    assert job.now > (MAX_STARTS - 7) * MAX_RESTART_SECS


def test_a_jobset_restarts_a_lost_worker_in_place_before_it_recreates_the_job():
    first = itertools.chain([42], itertools.repeat(0))
    codes = {0: first, 1: itertools.repeat(0)}
    manifests = rendered("multi-worker", "--workers=2", "--jobset", RESTART)
    jobset = replay(manifests, lambda index: next(codes[index]))
    assert (jobset.condition, jobset.restarts) == ("Completed", 0)
    assert sorted(pod.restarts for pod in jobset.jobs[0].ended) == [0, 1]


def test_real_processes_restart_in_place_and_keep_the_volumes_of_the_pod(tmp_path):
    """42 restarts the container, 1 restarts the JobSet, and volumes of the Pod begin anew."""
    manifests = k8s.submit("--overlay=single-node", "--jobset", RESTART)
    container = k8s.trainer_of(manifests)
    container["command"] = ["sh"]
    script = "echo >> /tmp/n; echo >> /runs/n; n=$(wc -l < /tmp/n) all=$(wc -l < /runs/n); "
    script += "[ $all = 3 ] && exit 0; [ $n = 1 ] && exit 42; exit 1"
    container["args"] = ["-c", script]

    def make_job(plain: k8s.Manifests) -> Job:
        return Job(plain, tmp_path / "claims", tmp_path / f"pods-{len(made)}")

    made: list[Job] = []
    jobset = JobSet(manifests, lambda plain: made.append(make_job(plain)) or made[-1])
    deadline = time.monotonic() + 30
    while not jobset.condition and time.monotonic() < deadline:
        jobset.step()
        time.sleep(0.01)
    assert jobset.condition == "Completed"
    assert [job.exit_codes for job in jobset.jobs] == [[1], [0]]
    assert [job.ended[0].restarts for job in jobset.jobs] == [1, 0]
    assert with_plain_job(manifests)[0]["spec"]["backoffLimit"] == 0
