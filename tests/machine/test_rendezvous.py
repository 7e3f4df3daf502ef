"""The wait of the workers for each other, with real sockets and without TensorFlow."""

import dataclasses
import socket
import threading
import time

import pytest

from trainer.errors import ExitCode, PeerError, UsageError
from trainer.machine import rendezvous
from trainer.machine.cluster import Cluster


class Stop(Exception):
    """A request to stop."""


@pytest.fixture
def cluster(monkeypatch):
    """Returns a cluster of three workers on this machine."""
    monkeypatch.setattr(rendezvous, "PACE_SECS", 0.05)
    with socket.socket() as first, socket.socket() as second, socket.socket() as third:
        for each in (first, second, third):
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (first, second, third)]
    return Cluster(tuple(f"127.0.0.1:{port}" for port in ports), 0, wait_secs=20)


class Worker(threading.Thread):
    """A worker that waits for the others in a thread."""

    def __init__(self, cluster, index):
        super().__init__(daemon=True)
        self._cluster = dataclasses.replace(cluster, index=index)
        self.leaves, self.error = False, None
        self.start()

    def _check_stop(self):
        if self.leaves:
            raise Stop

    def run(self):
        try:
            rendezvous.meet(self._cluster, self._check_stop)
        except (Stop, PeerError) as error:
            self.error = error

    def leave(self):
        self.leaves = True
        self.join(5)
        assert isinstance(self.error, Stop)


def test_all_go_on_when_the_last_one_has_come(cluster):
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        early = [Worker(cluster, index) for index in order[:2]]
        time.sleep(0.3)
        assert all(worker.is_alive() for worker in early)
        workers = [*early, Worker(cluster, order[2])]
        for worker in workers:
            worker.join(5)
            assert not worker.is_alive()
            assert worker.error is None
        with socket.create_server(("", int(cluster.workers[0].split(":")[1]))):
            pass  # TensorFlow can have the port


def test_a_worker_that_leaves_is_waited_for_again(cluster):
    chief, first = Worker(cluster, 0), Worker(cluster, 1)
    time.sleep(0.3)
    first.leave()
    second = Worker(cluster, 2)
    time.sleep(0.3)
    assert chief.is_alive()
    assert second.is_alive()
    again = Worker(cluster, 1)
    for worker in (chief, second, again):
        worker.join(5)
        assert not worker.is_alive()


def test_a_chief_that_starts_again_is_found(cluster):
    others = [Worker(cluster, 1), Worker(cluster, 2)]
    with socket.create_server(("127.0.0.1", int(cluster.workers[0].split(":")[1]))) as old:
        connection, _ = old.accept()  # the former process of the chief, which ends
        connection.close()
    chief = Worker(cluster, 0)
    for worker in (chief, *others):
        worker.join(5)
        assert not worker.is_alive()
        assert worker.error is None


def test_strangers_are_ignored(cluster, monkeypatch):
    monkeypatch.setattr(rendezvous, "ANSWER_SECS", 0.2)
    other_run = dataclasses.replace(cluster, workers=(cluster.workers[0], "127.0.0.1:1", "b:1"))
    chief = Worker(cluster, 0)
    hellos = [b"GET / HTTP/1.1\r\n\r\n", b"", rendezvous._hello(other_run, 1), b"\xff" * 9000]
    for hello in hellos:
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", int(cluster.workers[0].split(":")[1]))) as one:
            one.sendall(hello)
            time.sleep(0.3)
    assert chief.is_alive()
    others = [Worker(cluster, 1), Worker(cluster, 2)]
    for worker in (chief, *others):
        worker.join(5)
        assert not worker.is_alive()
        assert worker.error is None


def test_those_that_do_not_come_are_named(cluster, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(rendezvous, "REPORT_SECS", 0.5)
    cluster = dataclasses.replace(cluster, wait_secs=2, wait_code=ExitCode.STOPPED)
    chief, first = Worker(dataclasses.replace(cluster, wait_secs=1), 0), Worker(cluster, 1)
    chief.join(10)
    first.join(10)
    assert str(chief.error).startswith(f"--workers: {cluster.workers[2]} did not come within 1 s")
    assert f"{cluster.workers[0]}, and all others did not come within 2 s" in str(first.error)
    assert f"Waiting for other workers: {cluster.workers[2]}" in caplog.messages
    assert chief.error.exit_code == first.error.exit_code == ExitCode.STOPPED


def test_a_port_in_use_is_named(cluster):
    with (
        socket.create_server(("", int(cluster.workers[0].split(":")[1]))),
        pytest.raises(UsageError, match=f"the port of {cluster.workers[0]} cannot be used"),
    ):
        rendezvous.meet(cluster)
