"""A small model of Kubernetes' Job controller and kubelet that runs Pods as local processes.

It models the properties of a cluster that affect a trainer: environment variables and arguments,
volumes (claims persist, all others are deleted with their Pod), host names of workers,
completion indices, the Pod failure policy, the back-off, Pod replacement, container restart rules,
and SIGTERM followed by SIGKILL after the grace period. It does not model the isolation of
containers, so mount paths are replaced with local paths.
"""

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.helpers import manifests as k8s

# Kubernetes: 10 s, doubled with each failure since the last success, up to 10 minutes.
BACKOFF_SECS, MAX_BACKOFF_SECS = 0.2, 12.0
# The kubelet restarts a container at once for the first time, and then after 10 s, doubled each
# time up to 5 minutes. A container that has run for 10 minutes starts anew.
MAX_RESTART_SECS, RESET_SECS = 6.0, 12.0


@dataclasses.dataclass(eq=False)
class Pod:
    """One Pod: an attempt to complete one index of the Job."""

    index: int
    launch: Callable[[], subprocess.Popen]
    log: Path
    scratch: Path
    probes: dict[str, list[str]]
    environment: dict[str, str]
    conditions: set[str] = dataclasses.field(default_factory=set)
    kill_at: float | None = None
    exit_code: int | None = None
    restarts: int = 0  # of its container
    restarts_in_a_row: int = 0
    restarted_at: float = 0.0
    restart_at: float | None = None

    def __post_init__(self) -> None:
        self.popen = self.launch()

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def node(self) -> str:
        """The name of its node: each Pod has one of its own."""
        return self.environment["NODE_NAME"]

    @property
    def heartbeat(self) -> dict[str, Any]:
        """The newest phase and step of its process; empty before the first one."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.scratch / "tmp" / "heartbeat").read_bytes())
        return {}

    def evict(self, grace_secs: float) -> None:
        """Evicts the Pod, as a drained node, the kubelet or a preempting Pod does."""
        self.conditions.add("DisruptionTarget")
        self.terminate(grace_secs)

    def terminate(self, grace_secs: float) -> None:
        self.popen.terminate()
        self.kill_at = time.monotonic() + grace_secs

    def kill(self) -> None:
        """Kills the process without warning or condition, like the out-of-memory killer."""
        self.popen.kill()

    def probe(self, name: str, timeout: float) -> bool:
        """Returns whether a probe of the container succeeds."""
        done = subprocess.run(
            self.probes[name], env=self.environment, timeout=timeout, capture_output=True
        )
        return done.returncode == 0

    def has_ended(self) -> bool:
        """Kills the Pod if its grace period is over; returns whether the Pod has ended."""
        if self.kill_at and time.monotonic() > self.kill_at and self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        code = self.popen.poll()
        if code is None:
            return False
        self.exit_code = code if code >= 0 else 128 - code
        return True

    def remove(self) -> None:
        """Removes the volumes that exist as long as the Pod."""
        shutil.rmtree(self.scratch, ignore_errors=True)


def backoff_secs(failures: int, first: float = BACKOFF_SECS, limit: float = MAX_BACKOFF_SECS):
    """Returns the Job controller's delay in seconds after so many failures without a success."""
    return min(first * 2 ** (failures - 1), limit) if failures else 0.0


class Job:
    """A Job and its Pods. Each call of `step` is one iteration of the controller."""

    def __init__(
        self,
        manifests: k8s.Manifests,
        claims: Path,
        scratch: Path,
        clock: Callable[[], float] = time.monotonic,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Creates the Job.

        Args:
          manifests: its manifests.
          claims: folder of the persistent volumes.
          scratch: folder of the other volumes and of the logs.
          clock: returns monotonic seconds.
          environment: environment variables that replace those of the manifests.
        """
        self._manifests, self._claims, self._scratch = manifests, claims, scratch
        self._clock, self._environment = clock, environment
        self.name = k8s.one_of(manifests, "Job")["metadata"]["name"]
        self.spec = k8s.one_of(manifests, "Job")["spec"]
        self.grace_secs = k8s.pod_of(manifests)["terminationGracePeriodSeconds"]
        self._indexed = self.spec.get("completionMode") == "Indexed"
        count = self.spec.get("completions", 1)
        self._hosts = self._worker_addresses(count)
        self._waiting = set(range(count))  # indexes without a Pod
        self._failures, self._failed_at = 0, 0.0  # since the last success, ignored ones too
        self._began = clock()
        self.running: dict[int, Pod] = {}
        self.ended: list[Pod] = []
        self.failed = 0  # failures that count towards backoffLimit
        self.condition, self.reason = "", ""

    # The Job controller.

    def step(self) -> None:
        for index, pod in list(self.running.items()):
            if pod.has_ended() and not self._restarts_in_place(pod):
                pod.remove()
                del self.running[index]
                self.ended.append(pod)
                if not self.condition:
                    self._handle_exit(pod)
        if self._clock() - self._began > self.spec["activeDeadlineSeconds"]:
            self._fail("DeadlineExceeded")
        due = self._failed_at + backoff_secs(self._failures)
        if not self.condition and self._clock() >= due:
            for index in sorted(self._waiting):
                self.running[index] = self._start(index)
            self._waiting.clear()
        if not self._waiting and not self.running and not self.condition:
            self.condition = "Complete"

    def wait(self, until: Callable[[], bool] | None = None, timeout: float = 240) -> "Job":
        """Steps until `until` holds; by default until the Job and all its Pods have ended."""
        deadline = time.monotonic() + timeout
        while not (until() if until else self.condition and not self.running):
            self.step()
            assert until is None or not self.condition, f"{self.condition}: {self.outputs()}"
            assert time.monotonic() < deadline, f"not within {timeout} s: {self.outputs()}"
            time.sleep(0.05)
        return self

    def close(self) -> None:
        """Kills the remaining Pods, for example after a failed test."""
        for pod in self.running.values():
            pod.popen.kill()
            pod.popen.wait()

    def outputs(self) -> str:
        pods = [*self.ended, *self.running.values()]
        return "\n".join(f"Pod {p.index}, exit code {p.exit_code}:\n{p.output}" for p in pods)

    @property
    def exit_codes(self) -> list[int]:
        return [pod.exit_code for pod in self.ended]

    def _handle_exit(self, pod: Pod) -> None:
        if pod.exit_code == 0:
            self._failures = 0
            return
        # The delay before new Pods of any index counts failures that the policy ignores as well.
        self._failures, self._failed_at = self._failures + 1, self._clock()
        action = self._action(pod)
        if action == "FailJob":
            self._fail("PodFailurePolicy")
            return
        if action == "Count":
            self.failed += 1
            if self.failed > self.spec["backoffLimit"]:
                self._fail("BackoffLimitExceeded")
                return
        self._waiting.add(pod.index)

    def _action(self, pod: Pod) -> str:
        """Returns the action of the first matching rule, or "Count"."""
        for rule in self.spec["podFailurePolicy"]["rules"]:
            if codes := rule.get("onExitCodes"):
                listed = pod.exit_code in codes["values"]
                if listed == (codes["operator"] == "In"):
                    return rule["action"]
            for condition in rule.get("onPodConditions", []):
                if condition["status"] == "True" and condition["type"] in pod.conditions:
                    return rule["action"]
        return "Count"

    def _fail(self, reason: str) -> None:
        if not self.condition:
            self.condition, self.reason = "Failed", reason
        for pod in self.running.values():
            if pod.kill_at is None:
                pod.terminate(self.grace_secs)

    # The kubelet.

    def _restarts_in_place(self, pod: Pod) -> bool:
        """Restarts the container of a Pod once it is due; returns False if the Pod has ended."""
        if pod.kill_at is not None or pod.conditions or not self._is_restarted(pod.exit_code):
            return False
        now = self._clock()
        if pod.restart_at is None:
            if now - pod.restarted_at >= RESET_SECS:
                pod.restarts_in_a_row = 0
            pod.restart_at = now + backoff_secs(pod.restarts_in_a_row, limit=MAX_RESTART_SECS)
        if now >= pod.restart_at:
            pod.restart_at, pod.restarted_at, pod.exit_code = None, now, None
            pod.restarts, pod.restarts_in_a_row = pod.restarts + 1, pod.restarts_in_a_row + 1
            pod.popen = pod.launch()
        return True

    def _is_restarted(self, code: int) -> bool:
        """Returns whether a rule of the container restarts it: the first that matches decides."""
        for rule in k8s.trainer_of(self._manifests).get("restartPolicyRules", []):
            if (code in rule["exitCodes"]["values"]) == (rule["exitCodes"]["operator"] == "In"):
                return rule["action"] == "Restart"
        return False  # as the policy of the Pod, Never

    def _start(self, index: int) -> Pod:
        scratch = self._scratch / f"{self.name}-{index}-{len(self.ended)}"
        mounts = self._mounts(scratch)
        local = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(k8s.ROOT),  # runs the trainer of this checkout
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": os.environ["CUDA_VISIBLE_DEVICES"],
            "KUBERNETES_SERVICE_HOST": "10.96.0.1",
            "HOSTNAME": f"{self.name}-{index}" if self._indexed else self.name,
        }
        if self._indexed:
            local["JOB_COMPLETION_INDEX"] = str(index)
        given = k8s.environment_of(self._manifests)
        environment = local | {name: self._localize(text, mounts) for name, text in given.items()}
        environment |= {"NODE_NAME": "/".join(scratch.parts[-2:]), **self._environment}
        container = k8s.trainer_of(self._manifests)
        command = container.get("command") or k8s.entry_point()
        arguments = [self._localize(text, mounts) for text in k8s.arguments_of(self._manifests)]
        probes = {
            name: [self._localize(text, mounts) for text in container[name]["exec"]["command"]]
            for name in ("startupProbe", "livenessProbe")
        }
        log = self._scratch / f"{scratch.name}.log"

        def launch() -> subprocess.Popen:
            with open(log, "a") as file:
                return subprocess.Popen(
                    [*command, *arguments], env=environment, cwd=scratch, stdout=file, stderr=file
                )

        return Pod(index, launch, log, scratch, probes, environment)

    def _mounts(self, scratch: Path) -> dict[str, Path]:
        """Creates the volumes and returns the local folders by their mount paths."""
        scratch.mkdir(parents=True)
        volumes = {volume["name"]: volume for volume in k8s.pod_of(self._manifests)["volumes"]}
        mounts = {}
        for mount in k8s.trainer_of(self._manifests)["volumeMounts"]:
            volume = volumes[mount["name"]]
            if claim := volume.get("persistentVolumeClaim"):
                folder = self._claims / claim["claimName"]
            else:
                assert {"emptyDir", "ephemeral"} & volume.keys(), volume
                folder = scratch / volume["name"]
            folder.mkdir(parents=True, exist_ok=True)
            mounts[mount["mountPath"]] = folder
        return mounts

    def _localize(self, text: str, mounts: dict[str, Path]) -> str:
        """Replaces mount paths and host names of workers with local paths and addresses."""
        paths = "|".join(re.escape(path) for path in sorted(mounts, key=len, reverse=True))
        text = re.sub(
            rf"(?<![\w./:-])({paths})(?![\w.-])", lambda found: str(mounts[found[1]]), text
        )
        for name, address in self._hosts.items():
            text = text.replace(name, address)
        return text

    def _worker_addresses(self, count: int) -> dict[str, str]:
        """Returns the local address of each worker, after checking the headless Service."""
        subdomain = k8s.pod_of(self._manifests).get("subdomain")
        if not self._indexed or subdomain is None:
            return {}
        service = next(
            item
            for item in k8s.all_of(self._manifests, "Service")
            if item["metadata"]["name"] == subdomain
        )["spec"]
        labels = self.spec["template"]["metadata"]["labels"]
        assert service["clusterIP"] == "None"
        assert service["publishNotReadyAddresses"]
        assert service["selector"].items() <= labels.items()
        port = service["ports"][0]["port"]
        return {
            f"{self.name}-{index}.{subdomain}:{port}": f"127.0.0.1:{_free_port()}"
            for index in range(count)
        }


def _free_port() -> int:
    """Returns a port below those that the system gives to outgoing connections meanwhile."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
