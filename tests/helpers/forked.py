"""Runs the trainer in processes that are forked from one that has already imported TensorFlow.

Importing TensorFlow takes longer than most commands of the tests. Nothing of the trainer itself is
imported ahead, and TensorFlow is not initialized before the fork, so that a forked process behaves
like `python -m trainer`. Only what TensorFlow and Keras read when they are imported, such as
TF_CPP_MIN_LOG_LEVEL, comes from the environment of the first process.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path


class Launcher:
    """A process that forks the processes of the trainer, one at a time."""

    def __init__(self):
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, stderr=self._errors,
        )  # fmt: skip

    def run(self, arguments, cwd: Path, env: dict, timeout: float) -> subprocess.CompletedProcess:
        """Runs `python -m trainer` with arguments; like subprocess.run with captured text.

        Raises:
          TimeoutExpired: if it had to be killed after `timeout` seconds.
        """
        command = [sys.executable, "-m", "trainer", *arguments]
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = [list(arguments), str(cwd), env, str(out), str(err)]
            print(json.dumps(request), file=self._process.stdin, flush=True)
            pid = self._answer()
            late = threading.Event()
            alarm = threading.Timer(timeout, lambda: (late.set(), os.kill(pid, signal.SIGKILL)))
            alarm.start()
            try:
                code = self._answer()
            finally:
                alarm.cancel()
            if late.is_set():
                raise subprocess.TimeoutExpired(command, timeout, out.read_text(), err.read_text())
            return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> int:
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"the launcher has ended: {self._errors.read()}")
        return int(line)


def serve():
    """Forks a process for each request on standard input, and prints its ID and exit code."""
    import keras  # noqa: F401
    import tensorflow as tf  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(*request)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(arguments: list[str], cwd: str, env: dict, out: str, err: str):
    """Turns this process into `python -m trainer` with arguments."""
    for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        open(descriptor, mode, closefd=False) for descriptor, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[0] = cwd
    sys.argv = ["trainer", *arguments]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
