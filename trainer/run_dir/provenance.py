"""Which software and which devices started a run."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import __version__


def collect(
    versions: Mapping[str, str], device_names: Sequence[str], precision: str
) -> dict[str, Any]:
    """Returns what provenance.json records about this start of a run.

    Args:
      versions: versions of TensorFlow and Keras by name.
      device_names: devices of this machine that train, such as "GPU:0".
      precision: number format of the networks.
    """
    return {
        "trainer": __version__,
        **versions,
        "python": platform.python_version(),
        "commit": _commit(),
        "machine": platform.machine(),
        "devices": list(device_names),
        "precision": precision,
    }


def _commit() -> str | None:
    """Returns the Git commit of the checkout that this package runs from, if there is one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
