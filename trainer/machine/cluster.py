"""The workers of a run and the index of this one, without TensorFlow."""

import dataclasses
import json
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainer.errors import PeerError, UsageError

WAIT_SECS = 300.0  # how long to wait for the other workers
JOB_WAIT_SECS = 3000.0  # Pods may have to wait for new nodes and image downloads


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
      workers: their addresses, HOST:PORT; the first one is the chief.
      index: index of this worker.
      wait_secs: how long to wait for the other workers, in seconds.
    """

    workers: tuple[str, ...]
    index: int
    wait_secs: float = WAIT_SECS

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the run directory."""
        return self.index == 0

    def wait_for_names(
        self,
        *,
        resolve: Callable[[str, int], Any] = socket.getaddrinfo,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Waits until all workers' host names resolve, then checks that this worker's port is free.

        Raises:
          PeerError: if a host name does not resolve in time.
          UsageError: if the port is taken.
        """
        deadline = clock() + self.wait_secs
        for worker in self.workers:
            host, port = _host_port(worker)
            while True:
                try:
                    resolve(host, port)
                    break
                except OSError as error:
                    if clock() > deadline:
                        raise PeerError(
                            f"--workers: {host} has no address after {self.wait_secs:g} s "
                            f"({error.strerror}): check the name, and that its machine runs."
                        ) from None
                    sleep(1.0)
        self._check_port()

    def _check_port(self) -> None:
        worker = self.workers[self.index]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", _host_port(worker)[1]))
            except OSError as error:
                raise UsageError(
                    f"--workers: the port of {worker} cannot be used here ({error.strerror}): "
                    "another process has it, or --worker_index is wrong."
                ) from None


def find(workers: str, index: int | None, environment: Mapping[str, str]) -> Cluster | None:
    """Returns the cluster from TF_CONFIG or the flags, or None for a single machine.

    Args:
      workers: of --workers: addresses separated by commas, where HOST-{0..3}:PORT stands
        for four.
      index: of --worker_index, else JOB_COMPLETION_INDEX says it.
      environment: where TF_CONFIG, if there is one, goes before the flags.

    Raises:
      UsageError: if they do not describe a valid cluster.
    """
    if config := environment.get("TF_CONFIG"):
        cluster = _from_tf_config(config)
    elif workers:
        cluster = Cluster(tuple(_expanded(workers)), _own_index(index, environment))
        source = "--workers"
        _check(cluster, f"{source}={workers}")
    else:
        return None
    in_a_pod = "KUBERNETES_SERVICE_HOST" in environment
    cluster = dataclasses.replace(cluster, wait_secs=JOB_WAIT_SECS if in_a_pod else WAIT_SECS)
    return cluster if len(cluster.workers) > 1 else None


def _expanded(workers: str) -> Iterator[str]:
    for part in workers.split(","):
        match = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", part.strip())
        if match:
            first, last = int(match[2]), int(match[3])
            yield from (f"{match[1]}{k}{match[4]}" for k in range(first, last + 1))
        else:
            yield part.strip()


def _own_index(index: int | None, environment: Mapping[str, str]) -> int:
    if index is not None:
        return index
    value = environment.get("JOB_COMPLETION_INDEX", "")
    if not value.isdecimal():
        raise UsageError(
            "--workers names several machines: say by --worker_index, or by "
            "JOB_COMPLETION_INDEX in the environment, which of them this is."
        )
    return int(value)


def _from_tf_config(text: str) -> Cluster:
    """Reads TF_CONFIG; a chief, where there is one, comes before the workers."""
    try:
        content = json.loads(text)
        jobs = {name: list(hosts) for name, hosts in content["cluster"].items()}
        task, index = content["task"]["type"], int(content["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"TF_CONFIG={text!r} is not understood ({error}): it must be JSON with cluster, a "
            "list of HOST:PORT by job, and task, a type and an index."
        ) from None
    known = ("chief", "master", "worker")
    for name in [*jobs, task]:
        if name not in known:
            raise UsageError(f"TF_CONFIG names the job {name!r}; known are {', '.join(known)}.")
    if task not in jobs or not 0 <= index < len(jobs[task]):
        raise UsageError(f"TF_CONFIG: its cluster has no task {task} {index}.")
    order = [(name, k) for name in known for k in range(len(jobs.get(name, [])))]
    workers = tuple(str(jobs[name][k]) for name, k in order)
    cluster = Cluster(workers, order.index((task, index)))
    _check(cluster, "TF_CONFIG")
    return cluster


def _check(cluster: Cluster, source: str) -> None:
    for worker in cluster.workers:
        _host_port(worker, source)
    if len(set(cluster.workers)) < len(cluster.workers):
        raise UsageError(f"{source} names a worker twice.")
    if not 0 <= cluster.index < len(cluster.workers):
        raise UsageError(
            f"{source} names {len(cluster.workers)} workers, from 0 on; there is no worker "
            f"{cluster.index}."
        )


def _host_port(worker: str, source: str = "--workers") -> tuple[str, int]:
    host, colon, port = worker.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise UsageError(f"{source}: {worker!r} is not HOST:PORT.")
    return host.strip("[]"), int(port)
