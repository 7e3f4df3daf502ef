"""Imports TensorFlow without its start-up messages."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from trainer.machine import nvidia

CHATTER = (b"I0000", b"WARNING: All log messages before absl", b"To enable the following")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses TensorFlow's start-up messages on standard error during the block.

    TF_CPP_MIN_LOG_LEVEL does not affect what TensorFlow's C++ code prints while it is loaded,
    so the output is captured and only other messages are printed afterwards.
    """
    # Without an NVIDIA device, TensorFlow logs an error about the missing driver.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if nvidia.device_files() else "3")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            for line in caught:
                if not line.startswith(CHATTER):
                    os.write(2, line)
