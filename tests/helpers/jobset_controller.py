"""A model of JobSet's failure policy over that of the Job controller, with scripted exit codes.

JobSet looks at a Job only once it has failed and all of its Pods have ended. The first rule that
names the reason of the failure, or no reason, decides; without one the JobSet restarts, and the
restart counts. A restart deletes the Job and creates it anew, without a delay.
"""

import copy
import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.helpers import manifests as k8s
from tests.helpers.job_controller import Job, Pod
from trainer.errors import ExitCode, NoProgressError
from trainer.run_dir.starts import Starts

Script = Callable[[int], int | None]


class JobSet:
    """A JobSet with one replicated Job. Each call of `step` is one iteration of the controller."""

    def __init__(self, manifests: k8s.Manifests, make_job: Callable[[k8s.Manifests], Job]) -> None:
        """Creates the first Job.

        Args:
          manifests: the manifests of the JobSet.
          make_job: creates a Job from manifests.
        """
        self.spec = k8s.one_of(manifests, "JobSet")["spec"]
        self._manifests, self._make_job = with_plain_job(manifests), make_job
        self.jobs = [make_job(self._manifests)]
        self.counted = 0  # restarts that count towards maxRestarts
        self.condition = ""

    @property
    def restarts(self) -> int:
        return len(self.jobs) - 1

    def step(self) -> None:
        job = self.jobs[-1]
        job.step()
        if job.running or not job.condition or self.condition:
            return
        if job.condition == "Complete":
            self.condition = "Completed"
            return
        action = self._action(job.reason)
        if action == "FailJobSet":
            self.condition = "Failed"
            return
        if action == "RestartJobSet":
            if self.counted >= self.spec["failurePolicy"]["maxRestarts"]:
                self.condition = "Failed"
                return
            self.counted += 1
        self.jobs.append(self._make_job(self._manifests))

    def _action(self, reason: str) -> str:
        for rule in self.spec["failurePolicy"]["rules"]:
            if reason in rule.get("onJobFailureReasons", [reason]):
                return rule["action"]
        return "RestartJobSet"


def with_plain_job(manifests: k8s.Manifests) -> k8s.Manifests:
    """Returns the manifests with the Job that a JobSet creates in its place."""
    name = k8s.one_of(manifests, "JobSet")["metadata"]["name"]
    (replicated,) = k8s.one_of(manifests, "JobSet")["spec"]["replicatedJobs"]
    job = {
        "kind": "Job",
        "metadata": {"name": f"{name}-{replicated['name']}-0"},
        "spec": copy.deepcopy(replicated["template"]["spec"]),
    }
    return [job, *(item for item in manifests if item["kind"] != "JobSet")]


class Process:
    """A process that ends at once with an exit code, or runs until it is terminated."""

    def __init__(self, code: int | None) -> None:
        self._code = code

    def poll(self) -> int | None:
        return self._code

    def terminate(self) -> None:
        """Ends as a trainer that saves."""
        self._code = ExitCode.STOPPED if self._code is None else self._code


class ScriptedJob(Job):
    """A Job whose processes are scripted. Its clock advances with each step."""

    def __init__(self, manifests: k8s.Manifests, script: Script) -> None:
        """Makes the Job.

        Args:
          manifests: the manifests of the Job.
          script: returns the exit code of the next process of a worker; None to keep it running.
        """
        self.now, self._script = 0.0, script
        super().__init__(manifests, Path(), Path(), clock=lambda: self.now)

    def step(self) -> None:
        super().step()
        self.now += 0.1

    def _start(self, index: int) -> Pod:
        def launch() -> subprocess.Popen:
            return Process(self._script(index))

        return Pod(index, launch, Path(), Path("/nowhere"), {}, {})


def trainer_without_progress(code: int) -> Iterator[int]:
    """Yields the exit codes of a trainer that ends with `code` at each start, before it saves."""
    starts = Starts()
    for _ in itertools.count():
        try:
            starts = starts.reached(0, attempts=1, where="the run")
        except NoProgressError as error:
            yield error.exit_code
        yield code
