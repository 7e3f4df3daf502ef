"""Lets the workers of a run wait for each other, before TensorFlow joins them.

While TensorFlow waits, it holds the interpreter lock.  Then no signal is handled, no heartbeat is
written and no metrics are served, for as long as a machine is missing.  So the workers wait here
first.  Each one connects to the port of the chief and says who it is.  When all are connected, the
chief tells them to go on and frees the port, and all of them join at once.
"""

import contextlib
import hashlib
import logging
import selectors
import socket
import time
from collections.abc import Callable

from trainer.errors import PeerError
from trainer.machine.cluster import Cluster, parse_address, port_error

log = logging.getLogger(__name__)

REPORT_SECS = 30.0  # after which, again and again, the chief names the workers that are missing
PACE_SECS = 1.0  # between two looks at a stop request, and between two tries to connect
ANSWER_SECS = 1.0  # for the only message of a worker, and for that of the chief
GO = b"go\n"
MESSAGE_BYTES = 64
# A machine that lost its power is noticed after 10 s + 3 x 5 s.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


def meet(cluster: Cluster, check_stop: Callable[[], None] = lambda: None) -> None:
    """Waits until all workers of a cluster have called it.

    Args:
      cluster: the workers.
      check_stop: called about once per second; may raise an error that ends the wait.

    Raises:
      PeerError: if not all workers come within `cluster.wait_secs`.
      UsageError: if the port of this worker cannot be used.
    """
    deadline = time.monotonic() + cluster.wait_secs
    cluster.wait_for_host_names(check_stop)
    if cluster.is_chief:
        _gather(cluster, deadline, check_stop)
    else:
        _attend(cluster, deadline, check_stop)


def _gather(cluster: Cluster, deadline: float, check_stop: Callable[[], None]) -> None:
    """Waits for the connections of all other workers, and tells them to go on."""
    port = parse_address(cluster.workers[0])[1]
    indices = {_hello(cluster, index): index for index in range(1, len(cluster.workers))}
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        try:
            listener = stack.enter_context(socket.create_server(("", port)))
        except OSError as error:
            raise port_error(cluster.workers[0], error) from None
        selector.register(listener, selectors.EVENT_READ)
        report_at = time.monotonic() + REPORT_SECS
        while len(present) < len(indices):
            check_stop()
            missing = ", ".join(cluster.workers[k] for k in indices.values() if k not in present)
            if (now := time.monotonic()) > deadline:
                raise _failure(
                    cluster,
                    f"{missing} did not come within {cluster.wait_secs:g} s. Check whether the "
                    f"trainer runs there and reaches port {port} of the first worker.",
                )
            if now > report_at:
                report_at += REPORT_SECS
                log.info("Waiting for other workers: %s", missing)
            for key, _ in selector.select(PACE_SECS):
                if key.fileobj is listener:
                    connection = stack.enter_context(listener.accept()[0])
                    index = indices.get(_message(connection))
                    if index is not None:  # a worker that starts again connects again
                        present[index] = connection
                        selector.register(connection, selectors.EVENT_READ, index)
                else:  # workers say nothing more, so this one has left
                    selector.unregister(key.fileobj)
                    if present.get(key.data) is key.fileobj:
                        del present[key.data]
        for connection in present.values():
            with contextlib.suppress(OSError):  # whoever leaves now is missed by TensorFlow
                connection.sendall(GO)


def _attend(cluster: Cluster, deadline: float, check_stop: Callable[[], None]) -> None:
    """Connects to the chief, again and again, until it says to go on."""
    address = parse_address(cluster.workers[0])
    while time.monotonic() < deadline:
        check_stop()
        with (
            contextlib.suppress(OSError),
            socket.create_connection(address, ANSWER_SECS) as connection,
        ):
            _keep_alive(connection)
            connection.sendall(_hello(cluster, cluster.index))
            if _is_told_to_go(connection, deadline, check_stop):
                return
        time.sleep(PACE_SECS)
    raise _failure(
        cluster,
        f"the first worker, {cluster.workers[0]}, and all others did not come within "
        f"{cluster.wait_secs:g} s. Its log names those that are missing; if it shows nothing, "
        "check whether the trainer runs there and can be reached from this machine.",
    )


def _is_told_to_go(
    connection: socket.socket, deadline: float, check_stop: Callable[[], None]
) -> bool:
    """Waits for the message of the chief; returns False if the connection ends without it."""
    connection.settimeout(PACE_SECS)
    while time.monotonic() < deadline:
        check_stop()
        with contextlib.suppress(TimeoutError):
            return connection.recv(MESSAGE_BYTES) == GO
    return False


def _message(connection: socket.socket) -> bytes:
    """Returns the message of a connection; nothing if it says nothing in time."""
    _keep_alive(connection)
    connection.settimeout(ANSWER_SECS)
    with contextlib.suppress(OSError):
        return connection.recv(MESSAGE_BYTES)
    return b""


def _hello(cluster: Cluster, index: int) -> bytes:
    """Returns what a worker says: to which cluster it belongs, and its index."""
    name = hashlib.sha256(",".join(cluster.workers).encode()).hexdigest()[:16]
    return f"gan-trainer {name} {index}\n".encode()


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _failure(cluster: Cluster, text: str) -> PeerError:
    error = PeerError(f"--workers: {text}")
    error.exit_code = cluster.wait_code
    return error
