"""Kills the Pods of replayed Jobs at random moments of each phase of a run.

`make test-faults` runs a short form of it.  The long form, 300 kills, takes about an hour:

    .venv/bin/python -m pytest -n 2 -m marathon -s tests/end_to_end/test_random_kills.py
"""

import collections
import dataclasses
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import manifests as k8s
from tests.helpers.fake_gcs import Server
from tests.helpers.job_controller import Job, Pod
from tests.helpers.jobset_controller import JobSet
from tests.helpers.runs import records, variables
from trainer.files import json_lines
from trainer.run_dir import events

pytestmark = pytest.mark.faults

STEPS_PER_KILL = 100
FLAGS = [
    "--g_width=0.05", "--d_width=0.05", "--batch_size=8", "--sample_grid=2",
    "--checkpoint_every_kimg=0.4", "--sample_every_kimg=1.6", "--evaluate_every_kimg=1.6",
    "--evaluate_samples=100", "--log_every_steps=50", "--log_every_secs=1e9",
]  # fmt: skip
STARTING = (
    "launch", "starting", "reading", "waiting for peers", "downloading", "restoring", "compiling"
)  # fmt: skip
PHASES = (
    "launch", "starting", "reading", "restoring", "compiling", "training", "saving", "sampling",
    "evaluating",
)  # fmt: skip
END = "end"  # the export of a run that has trained all its steps
SIGNALS = ("SIGKILL", "eviction", "probe")  # the others send SIGTERM
# What a worker logs before it starts again.
STARTS_AGAIN = re.compile("another worker was lost|Stopped with another worker")
# For how long a kill waits for its phase before it takes any other.
PATIENCE_SECS = 90.0


@dataclasses.dataclass(frozen=True)
class Form:
    """How a run is submitted.

    Attributes:
      arguments: arguments of the submission.
      claim: the claim of its volume; "" if the run is in a bucket.
      phases: phases that only this form has.
    """

    arguments: tuple[str, ...]
    claim: str = "gan-runs-smoke"
    phases: tuple[str, ...] = ()

    @classmethod
    def smoke(cls, devices: str) -> "Form":
        return cls(("--overlay=cpu-smoke", f"--flag=--devices={devices}"))

    @classmethod
    def of_workers(cls, *more: str) -> "Form":
        given = ("--overlay=multi-worker", "--flag=--devices=cpu", *more)
        return cls(given, "gan-runs-shared", ("waiting for peers",))


FORMS = {
    "1-replica": Form.smoke("cpu:1"),
    "2-replicas": Form.smoke("cpu:2"),
    "4-replicas": Form.smoke("cpu:4"),
    "bucket": Form(
        ("--overlay=single-node", "--component=gcs", "--bucket=bucket", "--flag=--devices=cpu"),
        claim="",
        phases=("downloading",),
    ),
    "2-workers": Form.of_workers(),
    "2-workers-in-a-JobSet": Form.of_workers("--jobset"),
}


class Cluster:
    """Runs submissions of one form, and keeps all their Pods."""

    def __init__(self, folder: Path, form: Form, environment: dict[str, str]) -> None:
        self._folder, self._form, self._environment = folder, form, environment
        self._submitted: list[Job | JobSet] = []
        self._arguments: tuple[str, ...] = ()

    def submit(self, name: str, steps: int) -> None:
        """Submits a run of so many steps."""
        flags = [f"--flag={flag}" for flag in FLAGS]
        run = (f"--name={name}", f"--length=--steps={steps}", "--dataset=digits")
        self._arguments = (*self._form.arguments, *flags, *run)
        self._submit()

    def _submit(self) -> None:
        manifests = k8s.submit(*self._arguments)
        if k8s.all_of(manifests, "JobSet"):
            self._submitted.append(JobSet(manifests, self._make_job))
        else:
            self._submitted.append(self._make_job(manifests))

    def _make_job(self, manifests: k8s.Manifests) -> Job:
        pods = self._folder / f"pods{len(list(self._folder.glob('pods*')))}"
        pods.mkdir()
        claims = self._folder / "claims"
        return Job(manifests, claims, pods, environment=self._environment)

    @property
    def jobs(self) -> list[Job]:
        """All Jobs so far."""
        found: list[Job] = []
        for item in self._submitted:
            found += item.jobs if isinstance(item, JobSet) else [item]
        return found

    @property
    def running(self) -> list[Pod]:
        """The Pods whose process runs."""
        return [pod for pod in self.jobs[-1].running.values() if pod.popen.poll() is None]

    @property
    def ended(self) -> list[Pod]:
        return [pod for job in self.jobs for pod in job.ended]

    @property
    def is_complete(self) -> bool:
        """Whether the newest submission is complete."""
        return self._submitted[-1].condition.startswith("Complete")

    def step(self) -> None:
        """Advances the newest submission; after too many failures the user submits it again."""
        time.sleep(0.01)
        newest = self._submitted[-1]
        newest.step()
        if newest.condition == "Failed" and not self.jobs[-1].running:
            reason = self.jobs[-1].reason
            assert reason == "BackoffLimitExceeded", f"{reason}: {self.jobs[-1].outputs()}"
            self._submit()

    def wait(self, until: Callable[[], Any], secs: float) -> bool:
        """Steps until `until` is true; returns False after so many seconds."""
        deadline = time.monotonic() + secs
        while not until():
            if time.monotonic() > deadline:
                return False
            self.step()
        return True

    def close(self) -> None:
        for job in self.jobs:
            job.close()


def plan(form: Form, kills: int, rng: random.Random) -> list[tuple[str, str]]:
    """Returns the phase and the signal of each kill.

    Those of the end come last.  A run that is asked to stop there completes, so that only its last
    kill may be such a request.
    """
    phases = PHASES + form.phases
    num_ends = max(1, kills // (len(phases) + 1))
    found = [phases[number % len(phases)] for number in range(kills - num_ends)]
    rng.shuffle(found)
    first = rng.randrange(len(SIGNALS))
    given = [SIGNALS[(first + number) % len(SIGNALS)] for number in range(kills)]
    given[-num_ends:-1] = ["SIGKILL"] * (num_ends - 1)
    return list(zip([*found, *[END] * num_ends], given, strict=True))


def _pod_in(cluster: Cluster, phase: str, steps: int, rng: random.Random) -> Pod | None:
    """Waits until a random Pod is in a phase; returns None if it ends before."""
    assert cluster.wait(lambda: cluster.running, 120), "no Pod started"
    running = cluster.running
    # The chief ends the run; the others have nothing to save.
    pod = min(running, key=lambda pod: pod.index) if phase == END else rng.choice(running)
    process = pod.popen

    def is_there() -> bool:
        beat = pod.heartbeat
        if phase == END:
            return beat.get("step") == steps and beat["phase"] == "saving"
        if phase in STARTING and beat.get("phase") == "training":
            return True  # it was too short to be seen
        return phase == "launch" or beat.get("phase") == phase

    patience = 600 if phase == END else PATIENCE_SECS
    cluster.wait(lambda: is_there() or process.poll() is not None, patience)
    delay = rng.uniform(0, {"launch": 4.0, "training": 1.0}.get(phase, 0.2))
    cluster.wait(lambda: process.poll() is not None, delay)
    return pod if process.poll() is None and pod.kill_at is None else None


def kill(cluster: Cluster, phase: str, signal: str, steps: int, rng: random.Random) -> str:
    """Sends a signal to a Pod in a phase, and waits for its end; returns the phase it was in."""
    pod = None
    while pod is None:
        pod = _pod_in(cluster, phase, steps, rng)
        assert not cluster.is_complete, "the run is too short for its kills"
    found = pod.heartbeat
    if signal == "SIGKILL":
        pod.kill()
    elif signal == "eviction":
        pod.evict(30)
    else:
        pod.terminate(30)
    process = pod.popen
    assert cluster.wait(lambda: process.poll() is not None, 45), pod.output
    return END if found.get("step") == steps else found.get("phase", "launch")


def num_starts(pod: Pod) -> int:
    """Returns how often a process started in a Pod: it starts again for the other workers."""
    *before, after = STARTS_AGAIN.split(pod.output)
    is_final = before and pod.exit_code == 42 and '"message"' not in after
    return len(before) + 1 - bool(is_final)


def num_unexplained(pods: list[Pod], log: list[dict[str, Any]]) -> int:
    """Returns the number of chiefs' starts whose end the events neither state nor count.

    Args:
      pods: all Pods, ended.
      log: all events of the run.
    """
    lost = {event["process"] for event in log if event["event"] == "lost" and "process" in event}
    counted = sum(event.get("starts", 0) for event in log if event["event"] == "lost")
    without = 0
    for pod in pods:
        own = [event for event in log if event["node"] == pod.node and event["event"] != "lost"]
        missing = num_starts(pod) - len({event["process"] for event in own})
        if pod.index == 0:  # starts of the other workers are not counted
            without += missing
        if not own:
            continue
        last = own[-1]
        if last["event"] == "start":
            assert pod.exit_code == 128 + 9, own
            assert last["process"] in lost, own
        else:
            # A process may still be killed once it has recorded its end, and a worker that starts
            # again in its Pod may be stopped before it can record anything.
            allowed = {last["code"], 128 + 9} | ({128 + 15} if missing else set())
            assert pod.exit_code in allowed, (pod.exit_code, own)
    print(f"  {without} starts ended before they reached the run; {counted} of them are counted")
    return without - counted


def complete(cluster: Cluster) -> None:
    """Waits for the end of a run and of its Pods."""
    done = cluster.wait(lambda: cluster.is_complete and not cluster.jobs[-1].running, 900)
    assert done, cluster.jobs[-1].outputs()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Returns the folder of the cache, which holds the classifier of the evaluations."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.marathon)])
@pytest.mark.parametrize("name", FORMS)
def test_run_killed_in_any_phase_is_identical_to_an_uninterrupted_run(tmp_path, cache, name, kills):
    form, rng, steps = FORMS[name], random.Random(f"{name} {kills}"), STEPS_PER_KILL * kills
    environment = {"XDG_CACHE_HOME": str(cache)}
    server = None if form.claim else Server()
    if server:
        environment["STORAGE_EMULATOR_HOST"] = server.url
    cluster = Cluster(tmp_path, form, environment)
    try:
        cluster.submit("uninterrupted", steps)
        complete(cluster)
        before = len(cluster.ended)
        cluster.submit("run", steps)
        tally = collections.Counter()
        for number, (phase, signal) in enumerate(plan(form, kills, rng), 1):
            found = kill(cluster, phase, signal, steps, rng)
            tally[found, signal] += 1
            print(f"{name}: {number} of {kills}: {signal} in phase {found}", flush=True)
        complete(cluster)
        pods = cluster.ended[before:]
        codes = collections.Counter(pod.exit_code for pod in pods)
        folders = [tmp_path / "claims" / form.claim / run for run in ("uninterrupted", "run")]
        if server:
            folders = [_downloaded(server, run, tmp_path) for run in ("uninterrupted", "run")]
    finally:
        cluster.close()
        if server:
            server.close()
    print(f"\n{name}: {len(pods)} Pods, exit codes {dict(codes)}")
    for phase in sorted({phase for phase, _ in tally}):
        print(f"  {phase}: " + ", ".join(f"{tally[phase, s]} {s}" for s in SIGNALS))
    assert not any("Traceback" in pod.output for pod in pods)
    assert sum(tally.values()) == kills
    assert_nothing_lost(*folders, steps)
    # Some processes are killed before they could write anything.
    early = sum(tally[phase, signal] for phase in ("launch", "starting") for signal in SIGNALS)
    if "--jobset" in form.arguments:  # after each kill it also stops the other Pods, in any phase
        early = kills
    assert 0 <= num_unexplained(pods, events.read_newest(folders[1], 10**6)) <= early


def assert_nothing_lost(expected: Path, actual: Path, steps: int) -> None:
    """Asserts that a run has all files, steps and values of an uninterrupted one."""
    values, lines = variables(actual), records(actual)
    for key, value in variables(expected).items():
        np.testing.assert_array_equal(values[key], value, err_msg=key)
    assert sum(line["steps"] for line in lines) == lines[-1]["step"] == steps
    # A run that stops also draws samples; all that are due are those of the uninterrupted run.
    for path in (expected / "samples").iterdir():
        assert (actual / "samples" / path.name).read_bytes() == path.read_bytes(), path.name
    assert _evaluations(actual) == _evaluations(expected)
    assert (actual / "generator.keras").exists()


def _evaluations(folder: Path) -> dict[int, float]:
    lines = json_lines.read_valid(folder / "evaluations.jsonl", {"step": int, "fid": float})
    return {line["step"]: line["fid"] for line in lines}


def _downloaded(server: Server, run: str, folder: Path) -> Path:
    """Returns a folder with the files of a run in the bucket."""
    prefix = f"runs/{run}/"
    for name, item in server.objects["bucket"].items():
        if name.startswith(prefix):
            path = folder / "downloaded" / run / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(item.content)
    return folder / "downloaded" / run
