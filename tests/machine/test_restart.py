"""How a worker waits for others, and starts again in its process when one is lost."""

import subprocess
import sys

import pytest

from trainer.errors import ExitCode

WAIT = """
import time
from trainer.errors import ExitCode
from trainer.machine.watchdog import exit_after
with exit_after(0.2, "not all joined", ExitCode.{code}):
    time.sleep(60)
"""
RESTART = """
import os, signal, socket, sys, threading, time
from trainer.machine import restart, signals
os.environ["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
stop = signals.StopRequest()
stop.allow_graceful_stop(12.0)
for _ in range(4):  # any thread may receive a signal, as those of TensorFlow
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
listening = socket.create_server(("127.0.0.1", 0))
os.set_inheritable(listening.fileno(), True)
execute = os.execv
def replace(path, arguments):
    os.kill(os.getpid(), signal.SIGTERM)  # arrives after the last look at the request
    time.sleep(0.2)
    code = "import os, sys, time; from trainer.machine.signals import StopRequest; " \
        "print(sorted(os.listdir('/proc/self/fd')), sys.argv[1:], flush=True); " \
        "StopRequest(); time.sleep(60)"
    execute(path, [path, "-c", code, *arguments[3:]])
os.execv = replace
restart.restart_in_a_pod(["train", "--seed=1"], stop)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], text=True, capture_output=True, timeout=60
    )


@pytest.mark.parametrize("code", [ExitCode.CRASH, ExitCode.STOPPED])
def test_a_wait_without_end_ends_with_the_exit_code_and_the_reason(code):
    done = run(WAIT.format(code=code.name))
    assert done.returncode == code
    assert done.stderr.startswith("error: not all joined. Check the logs")


def test_a_restart_releases_sockets_and_keeps_a_signal_that_arrives_meanwhile():
    done = run(RESTART)
    assert done.returncode == ExitCode.TERMINATED, done.stderr
    assert done.stdout == "['0', '1', '2', '3'] ['train', '--seed=1']\n"


NO_MORE_THREADS = """
import os, signal, threading, time
from trainer.machine import signals
signals.StopRequest()
def start(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
"""


def test_a_signal_ends_a_process_that_cannot_start_a_thread():
    assert run(NO_MORE_THREADS).returncode == ExitCode.TERMINATED


NO_RESTART = """
import os, signal, time
from trainer.machine import restart, signals
stop = signals.StopRequest()
stop.allow_graceful_stop(12.0)
if {stop}:
    os.kill(os.getpid(), signal.SIGTERM)
    while not stop():
        time.sleep(0.01)
restart.restart_in_a_pod(["status"], stop, {environment})
print("returned")
"""


@pytest.mark.parametrize(
    ("stop", "environment"), [(False, {}), (True, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})]
)
def test_nothing_is_restarted_outside_of_pods_or_after_a_request_to_stop(stop, environment):
    done = run(NO_RESTART.format(stop=stop, environment=environment))
    assert done.stdout == "returned\n", done.stderr
