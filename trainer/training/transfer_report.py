"""Describes what a new run takes over from another run."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from trainer.run_dir.checkpoint_files import checkpoint_step
from trainer.run_dir.directory import RunDir
from trainer.training.fine_tuning import LayerTransfer, Transfer

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MAX_NAMED = 8  # layers that a line of the log names


def log_summary(transfer: Transfer, source: RunDir) -> None:
    """Logs what is taken over from the run in a directory, a line for each network."""
    step = checkpoint_step(transfer.checkpoint)
    log.info("Starting from the networks of %s at step %d", source.path, step)
    if transfer.differences:
        listed = "; ".join(f"{name}: {text}" for name, text in transfer.differences.items())
        log.info("Differences from that run: %s", listed)
    if {"classes", "class_names"} & transfer.differences.keys():
        log.info("Classes taken over by name: %s", ", ".join(transfer.classes) or "none")
    for name, layers in transfer.layers.items():
        log.info("%s: %s", name.capitalize(), _summary(layers))
    if transfer.frozen:
        log.info("Layers of the discriminator that are not trained: %s", ", ".join(transfer.frozen))


def describe(transfer: Transfer, source: RunDir) -> dict[str, Any]:
    """Returns the content of initialization.json."""
    return {
        "format_version": FORMAT_VERSION,
        "init_from": str(source.path),
        "step": checkpoint_step(transfer.checkpoint),
        "differences": dict(transfer.differences),
        "classes": list(transfer.classes),
        "frozen": list(transfer.frozen),
        "layers": {
            name: [dataclasses.asdict(layer) for layer in layers]
            for name, layers in transfer.layers.items()
        },
    }


def _summary(layers: Sequence[LayerTransfer]) -> str:
    """Returns the number of weights that are taken over, and the layers that begin anew."""
    total = sum(layer.weights for layer in layers)
    taken = sum(layer.taken_over for layer in layers)
    if taken == total:
        return f"all {total:,} weights are taken over."
    anew = [
        f"{layer.layer} ({layer.weights - layer.taken_over:,}"
        + (f" of {layer.weights:,})" if layer.taken_over else ")")
        for layer in layers
        if layer.taken_over < layer.weights
    ]
    if len(anew) > MAX_NAMED:
        anew[MAX_NAMED:] = [f"{len(anew) - MAX_NAMED} more layers (see initialization.json)"]
    return (
        f"{taken:,} of {total:,} weights ({100 * taken // total}%) are taken over. "
        f"{total - taken:,} weights begin anew: {', '.join(anew)}."
    )
