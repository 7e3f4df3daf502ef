"""Compares the software and the inputs of the workers of a run."""

import hashlib

import numpy as np

from trainer.errors import PeerLostError, UsageError
from trainer.machine.replicas import Replicas

SOFTWARE_BYTES = 64  # of the text that describes a worker's software


def check_same_on_all_workers(replicas: Replicas, software: str, inputs: str) -> None:
    """Compares texts that must be equal on every worker.

    Args:
      replicas: the replicas of this worker.
      software: describes the program, in at most 64 characters.
      inputs: the flags and the data.

    Raises:
      UsageError: on every worker, if one of the texts differs.
    """
    text = "\n".join([software, inputs])
    mine = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    chiefs = replicas.broadcast(mine)
    if replicas.any_worker(mine != chiefs):
        _check_same_software(replicas, software)
        comparison = "has" if mine == chiefs else "does not have"
        raise UsageError(
            "The workers were started with different flags, or see different data: worker "
            f"{replicas.worker_index} {comparison} the chief's. Start all with the same "
            "flags and data."
        )


def _check_same_software(replicas: Replicas, software: str) -> None:
    own = np.frombuffer(software.encode().ljust(SOFTWARE_BYTES)[:SOFTWARE_BYTES], np.uint8)
    table = np.zeros([replicas.num_workers, SOFTWARE_BYTES], np.int64)
    table[replicas.worker_index] = own
    try:
        rows = replicas.sum_over_workers(table)
    except PeerLostError:  # a former version compares only once and has ended
        found = [f"worker {replicas.worker_index} has {software}, and another worker has ended"]
    else:
        texts = [row.astype(np.uint8).tobytes().decode().strip() for row in rows]
        if len(set(texts)) == 1:
            return
        found = [f"worker {k} has {text}" for k, text in enumerate(texts)]
    raise UsageError(
        f"The workers run different versions of the trainer: {', '.join(found)}. Install the "
        "same version on all of them."
    )
