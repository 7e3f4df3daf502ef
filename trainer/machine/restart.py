"""Restarts a worker of a Kubernetes Job in its process, after another worker was lost."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence

from trainer.machine.signals import StopRequest


def restart_in_a_pod(
    arguments: Sequence[str],
    stop_requested: StopRequest,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Replaces this process by a new one with the same command line; outside of Pods it returns.

    The new process waits for the lost worker.  So the loss is one failed Pod for the Job, not one
    for each worker, and the delay before the replacement does not grow by the other workers.

    Args:
      arguments: the command and its flags.
      stop_requested: tells whether this worker was asked to stop, and must not start again.
      environment: environment variables.
    """
    if "KUBERNETES_SERVICE_HOST" not in environment:
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    stop_requested.release()  # a signal that arrives from now on is handled by the new process
    for name in os.listdir("/proc/self/fd"):
        try:
            os.set_inheritable(int(name), int(name) <= 2)  # sockets and devices must be released
        except OSError:
            continue  # the descriptor that listed the folder
    if not stop_requested():
        os.execv(sys.executable, [sys.executable, "-m", "trainer", *arguments])
