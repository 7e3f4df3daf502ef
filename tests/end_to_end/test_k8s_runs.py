"""Runs the manifests as Jobs of real processes that are evicted, killed and restarted."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import manifests as k8s
from tests.helpers.job_controller import Job, Pod
from tests.helpers.runs import DATA_DIR, records, variables
from trainer.errors import ExitCode
from trainer.run_dir.events import read_newest

pytestmark = pytest.mark.faults

STEPS = 1200  # some seconds of training on a fast machine, so that signals arrive during it
QUICK = [
    f"--length=--steps={STEPS}", "--flag=--g_width=0.05", "--flag=--d_width=0.05",
    "--flag=--batch_size=8", "--flag=--sample_grid=2", "--flag=--log_every_secs=0.2",
]  # fmt: skip


class Cluster:
    """Persistent volumes, and the Jobs that use them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs: list[Job] = []

    def dataset(self, claim: str) -> str:
        """Returns the data-set flag: MNIST, copied to the volume, if available; else digits."""
        if not DATA_DIR:
            return "--dataset=digits"
        volume = self._folder / "claims" / claim
        volume.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(DATA_DIR) / "mnist.npz", volume)
        return "--dataset=/runs/mnist.npz"

    def submit(self, manifests: k8s.Manifests) -> Job:
        job = Job(manifests, self._folder / "claims", self._folder / "pods")
        self._jobs.append(job)
        return job

    def smoke(self, *arguments: str, name: str = "run") -> Job:
        given = ["--overlay=cpu-smoke", self.dataset("gan-runs-smoke"), *QUICK, f"--name={name}"]
        return self.submit(k8s.submit(*given, *arguments))

    def workers(self, *arguments: str, name: str = "run") -> Job:
        dataset = self.dataset("gan-runs-shared")
        given = ["--overlay=multi-worker", dataset, *QUICK, f"--name={name}"]
        return self.submit(k8s.submit(*given, "--flag=--devices=cpu", *arguments))

    def run(self, name: str = "run", claim: str = "gan-runs-smoke") -> Path:
        return self._folder / "claims" / claim / name

    def close(self) -> None:
        for job in self._jobs:
            job.close()


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def has_logged(folder: Path):
    """Returns a condition that holds once the run has logged three times."""
    return lambda: (folder / "metrics.jsonl").exists() and len(records(folder)) >= 3


def check_complete(folder: Path, steps: int = STEPS) -> None:
    """Asserts that no step was lost or repeated."""
    lines = records(folder)
    assert sum(line["steps"] for line in lines) == lines[-1]["step"] == steps
    assert (folder / "generator.keras").exists()


def assert_equal_variables(one: Path, other: Path) -> None:
    """Asserts that the variables of two runs are identical bit for bit."""
    expected, actual = variables(one), variables(other)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_rendered_overlay_trains_to_completion(cluster):
    job = cluster.submit(k8s.render("overlays/cpu-smoke"))
    job.wait(has_logged(cluster.run("cpu-smoke")))
    (pod,) = job.running.values()
    assert pod.probe("startupProbe", timeout=30)
    assert pod.probe("livenessProbe", timeout=30)
    job.wait()
    assert job.condition == "Complete", job.outputs()
    assert job.exit_codes == [ExitCode.OK]
    check_complete(cluster.run("cpu-smoke"), steps=200)


def test_submitting_a_complete_run_again_changes_no_files(cluster):
    first = cluster.smoke().wait()
    assert first.condition == "Complete", first.outputs()
    before = {path: path.stat().st_mtime for path in cluster.run().rglob("*.*")}
    second = cluster.smoke().wait()
    assert second.name != first.name
    assert second.condition == "Complete", second.outputs()
    assert second.exit_codes == [ExitCode.OK]
    assert f"is complete: {STEPS} steps" in second.outputs()
    for path in [cluster.run() / "generator.keras", cluster.run() / "metrics.jsonl"]:
        assert path.stat().st_mtime == before[path]


def test_evicted_and_killed_pods_resume_without_losing_steps(cluster):
    """Checks that no step is lost and that only the kill counts as a failure."""
    job = cluster.smoke()
    job.wait(has_logged(cluster.run()))
    (pod,) = job.running.values()
    began = time.monotonic()
    pod.evict(job.grace_secs)
    job.wait(lambda: len(job.ended) == 1)
    assert time.monotonic() - began < 15
    assert job.exit_codes == [ExitCode.STOPPED], job.outputs()
    assert job.failed == 0

    stopped = len(records(cluster.run()))
    job.wait(lambda: len(records(cluster.run())) >= stopped + 2)
    (pod,) = job.running.values()
    pod.kill()
    job.wait(lambda: len(job.ended) == 2)
    assert job.failed == 1

    job.wait()
    assert job.condition == "Complete", job.outputs()
    assert job.exit_codes == [ExitCode.STOPPED, 137, ExitCode.OK]
    assert "Resuming from" in job.ended[1].output
    assert "Resuming from" in job.ended[2].output
    check_complete(cluster.run())
    kinds = [event["event"] for event in read_newest(cluster.run(), 9)]
    assert kinds == ["start", "stop", "start", "lost", "start", "complete"]
    assert cluster.smoke(name="uninterrupted").wait().condition == "Complete"
    assert_equal_variables(cluster.run("uninterrupted"), cluster.run())


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ("--flag=--stepz=1", ExitCode.USAGE, "--stepz is not a flag"),
        ("--dataset=/runs/nothing.zip", ExitCode.DATA, "nothing.zip"),
    ],
)
def test_invalid_settings_fail_the_job_without_a_retry(cluster, given, code, message):
    job = cluster.smoke(given).wait()
    assert (job.condition, job.reason) == ("Failed", "PodFailurePolicy")
    assert job.exit_codes == [code]
    assert message in job.outputs()


def test_resuming_with_changed_settings_fails_the_job_without_a_retry(cluster):
    assert cluster.smoke("--length=--steps=1").wait().condition == "Complete"
    job = cluster.smoke("--length=--steps=1", "--flag=--seed=1").wait()
    assert (job.condition, job.reason) == ("Failed", "PodFailurePolicy")
    assert job.exit_codes == [ExitCode.CHECKPOINT]
    assert "seed" in job.outputs()


def test_job_fails_after_repeated_crashes(cluster):
    job = cluster.smoke()
    killed: list[Pod] = []
    while not job.condition:
        job.step()
        for pod in job.running.values():
            if pod not in killed:
                killed.append(pod)
                pod.kill()
        time.sleep(0.02)
    assert (job.condition, job.reason) == ("Failed", "BackoffLimitExceeded")
    assert job.exit_codes == [137] * (1 + job.spec["backoffLimit"])


# Several machines.


SHARED = "gan-runs-shared"


def test_workers_train_to_completion(cluster):
    job = cluster.workers().wait()
    assert job.condition == "Complete", job.outputs()
    assert job.exit_codes == [ExitCode.OK] * 2
    check_complete(cluster.run(claim=SHARED))
    repeated = cluster.workers().wait()
    assert repeated.exit_codes == [ExitCode.OK] * 2, repeated.outputs()


def test_all_workers_stop_and_resume_when_one_is_evicted(cluster):
    """Checks that the loss is one Pod: the other worker restarts in its Pod and waits."""
    job = cluster.workers()
    job.wait(has_logged(cluster.run(claim=SHARED)))
    began = time.monotonic()
    job.running[1].evict(job.grace_secs)
    job.wait(lambda: len(job.ended) >= 1)
    assert time.monotonic() - began < 20
    job.wait()
    assert job.condition == "Complete", job.outputs()
    assert job.exit_codes == [ExitCode.STOPPED, ExitCode.OK, ExitCode.OK], job.outputs()
    assert "Stopped with another worker" in job.outputs()
    assert job.failed == 0
    check_complete(cluster.run(claim=SHARED))


@pytest.mark.parametrize("index", [0, 1])
def test_all_workers_stop_and_resume_when_one_is_killed(cluster, index):
    """Checks that the loss is one failure, and that both resume from the last checkpoint."""
    job = cluster.workers("--flag=--checkpoint_every_kimg=0.4")
    job.wait(has_logged(cluster.run(claim=SHARED)))
    job.running[index].kill()
    job.wait()
    assert job.condition == "Complete", job.outputs()
    assert job.exit_codes == [137, ExitCode.OK, ExitCode.OK], job.outputs()
    assert "another worker was lost" in job.outputs()
    assert job.failed == 1
    check_complete(cluster.run(claim=SHARED))
