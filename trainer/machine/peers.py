"""Recognizes the errors that TensorFlow raises when another worker was lost."""

import contextlib
import re
from collections.abc import Iterator

import tensorflow as tf

from trainer.errors import PeerLostError

PEER_WORDS = re.compile(r"abort|unavailable|heartbeat|connection|socket|peer", re.I)
PEER_LOST = (  # errors of a collective operation after a peer was lost
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
)


@contextlib.contextmanager
def converted_errors() -> Iterator[None]:
    """Converts the errors that TensorFlow raises after a lost peer into a PeerLostError."""
    try:
        yield
    except PEER_LOST as error:
        # TensorFlow's first line states the operation; the cause is further down.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if PEER_WORDS.search(line)), (lines or [""])[-1])
        raise PeerLostError(
            f"Stopped: another worker was lost ({type(error).__name__}: {reason[:200]}). "
            "Running the same command again resumes the run from its last checkpoint."
        ) from error
