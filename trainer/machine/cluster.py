"""Finds the workers of a run and the index of this worker, without TensorFlow."""

import dataclasses
import json
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trainer.errors import ExitCode, PeerError, UsageError

WAIT_SECS = 300.0  # how long to wait for the other workers
JOB_WAIT_SECS = 3000.0  # Pods may wait for new nodes and image downloads
JOIN_SECS = 300.0  # for TensorFlow, once all workers are there


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
      workers: addresses of the workers, HOST:PORT. The first one is the chief.
      index: index of this worker.
      wait_secs: how long to wait for the other workers, in seconds.
      wait_code: exit code if they do not come. In a Pod it is no failure: one node that cannot be
        replaced must not use up the failures that the Job allows.
    """

    workers: tuple[str, ...]
    index: int
    wait_secs: float = WAIT_SECS
    wait_code: ExitCode = ExitCode.CRASH

    @property
    def is_chief(self) -> bool:
        """Whether this worker is the chief, which writes the run directory."""
        return self.index == 0

    def wait_for_host_names(
        self,
        check_stop: Callable[[], None] = lambda: None,
        *,
        resolve: Callable[[str, int], Any] = socket.getaddrinfo,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Waits until all workers' host names resolve, then checks that this worker's port is free.

        Args:
          check_stop: called about once per second; may raise an error that ends the wait.
          resolve: returns the addresses of a host and a port, or raises an OSError.
          sleep: waits for some seconds.
          clock: returns monotonic seconds.

        Raises:
          PeerError: if a host name does not resolve within `wait_secs`.
          UsageError: if the port cannot be used.
        """
        deadline = clock() + self.wait_secs
        for worker in self.workers:
            host, port = parse_address(worker)
            while True:
                check_stop()
                try:
                    resolve(host, port)
                    break
                except OSError as error:
                    if clock() > deadline:
                        failure = PeerError(
                            f"--workers: the host name {host} does not resolve after "
                            f"{self.wait_secs:g} s ({error.strerror}). Check the name and whether "
                            "that machine is running."
                        )
                        failure.exit_code = self.wait_code
                        raise failure from None
                    sleep(1.0)
        self._check_port()

    def _check_port(self) -> None:
        worker = self.workers[self.index]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", parse_address(worker)[1]))
            except OSError as error:
                raise port_error(worker, error) from None


def find_cluster(workers: str, index: int | None, environment: Mapping[str, str]) -> Cluster | None:
    """Returns the cluster from TF_CONFIG or the flags, or None for a single machine.

    Args:
      workers: value of --workers: addresses separated by commas. HOST-{0..3}:PORT stands for
        four addresses.
      index: value of --worker_index. If it is None, the environment variable
        JOB_COMPLETION_INDEX is used.
      environment: environment variables. TF_CONFIG takes precedence over the flags.

    Raises:
      UsageError: if the flags or variables do not describe a valid cluster.
    """
    if config := environment.get("TF_CONFIG"):
        cluster = _from_tf_config(config)
    elif workers:
        cluster = Cluster(tuple(_expand_workers(workers)), _worker_index(index, environment))
        _check_cluster(cluster, f"--workers={workers}")
    else:
        return None
    in_a_pod = "KUBERNETES_SERVICE_HOST" in environment
    cluster = dataclasses.replace(cluster, wait_secs=JOB_WAIT_SECS if in_a_pod else WAIT_SECS)
    if in_a_pod:
        cluster = dataclasses.replace(cluster, wait_code=ExitCode.STOPPED)
    return cluster if len(cluster.workers) > 1 else None


def _expand_workers(workers: str) -> Iterator[str]:
    for part in workers.split(","):
        match = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", part.strip())
        if match:
            first, last = int(match[2]), int(match[3])
            yield from (f"{match[1]}{k}{match[4]}" for k in range(first, last + 1))
        else:
            yield part.strip()


def _worker_index(index: int | None, environment: Mapping[str, str]) -> int:
    if index is not None:
        return index
    value = environment.get("JOB_COMPLETION_INDEX", "")
    if not value.isdecimal():
        raise UsageError(
            "--workers names several machines, but the index of this one is unknown. Set "
            "--worker_index or the environment variable JOB_COMPLETION_INDEX."
        )
    return int(value)


def _from_tf_config(text: str) -> Cluster:
    """Returns the cluster that TF_CONFIG describes; a chief precedes the workers."""
    try:
        content = json.loads(text)
        jobs = {name: list(hosts) for name, hosts in content["cluster"].items()}
        task, index = content["task"]["type"], int(content["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"TF_CONFIG={text!r} is not valid ({error}). Use a JSON object with a cluster, which "
            "lists the addresses HOST:PORT of each job, and a task with a type and an index."
        ) from None
    known = ("chief", "master", "worker")
    for name in [*jobs, task]:
        if name not in known:
            raise UsageError(
                f"TF_CONFIG names the job {name!r}. Only the jobs {', '.join(known)} are supported."
            )
    if task not in jobs or not 0 <= index < len(jobs[task]):
        raise UsageError(
            f"TF_CONFIG: the cluster has no task {task} {index}. Use a task of the cluster."
        )
    order = [(name, k) for name in known for k in range(len(jobs.get(name, [])))]
    workers = tuple(str(jobs[name][k]) for name, k in order)
    cluster = Cluster(workers, order.index((task, index)))
    _check_cluster(cluster, "TF_CONFIG")
    return cluster


def _check_cluster(cluster: Cluster, source: str) -> None:
    for worker in cluster.workers:
        parse_address(worker, source)
    if len(set(cluster.workers)) < len(cluster.workers):
        raise UsageError(f"{source} repeats an address. Name each worker once.")
    if not 0 <= cluster.index < len(cluster.workers):
        raise UsageError(
            f"{source} names {len(cluster.workers)} workers, but the index of this worker is "
            f"{cluster.index}. Use an index from 0 to {len(cluster.workers) - 1}."
        )


def port_error(worker: str, error: OSError) -> UsageError:
    """Returns the error of a worker whose port cannot be used."""
    return UsageError(
        f"--workers: the port of {worker} cannot be used on this machine ({error.strerror}). Stop "
        "the process that uses the port, or correct --worker_index."
    )


def parse_address(worker: str, source: str = "--workers") -> tuple[str, int]:
    """Returns the host and the port of HOST:PORT.

    Raises:
      UsageError: if it has another form; `source` is where it is from.
    """
    host, colon, port = worker.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise UsageError(f"{source}: {worker!r} is not valid. Use HOST:PORT.")
    return host.strip("[]"), int(port)
