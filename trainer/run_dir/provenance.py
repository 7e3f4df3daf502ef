"""Which software and which devices started a run."""

import hashlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import __version__

PACKAGE = Path(__file__).resolve().parents[1]


def collect(
    versions: Mapping[str, str], device_names: Sequence[str], precision: str
) -> dict[str, Any]:
    """Returns what provenance.json records about this start of a run.

    Args:
      versions: versions of TensorFlow and Keras by name.
      device_names: devices of this machine that train, such as "GPU:0".
      precision: number format of the networks, as a value of --precision other than "auto".
    """
    return {
        "trainer": __version__,
        **versions,
        "python": platform.python_version(),
        "commit": _commit(),
        "sources": hash_sources(),
        "machine": platform.machine(),
        "devices": list(device_names),
        "precision": precision,
        "tensor_float_32": precision != "float32",
    }


def selected_precision(start: Mapping[str, Any]) -> str | None:
    """Returns the number format of a recorded start; None if it was not recorded.

    Versions that did not record `tensor_float_32` let float32 products on GPUs use it, which is now
    the number format tf32.
    """
    return "tf32" if allowed_tensor_float_32(start) else start.get("precision")


def allowed_tensor_float_32(start: Mapping[str, Any]) -> bool:
    """Returns whether a former version trained in float32 on GPUs, with TensorFloat-32."""
    on_gpus = any(str(name).startswith("GPU") for name in start.get("devices", ()))
    return start.get("precision") == "float32" and on_gpus and "tensor_float_32" not in start


def hash_sources(package: Path = PACKAGE) -> str:
    """Returns the first 12 hexadecimal digits of a SHA-256 of the package's Python files."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def describe_software() -> str:
    """Returns the version of this package and a hash of its sources."""
    return f"version {__version__} (sources {hash_sources()})"


def _commit() -> str | None:
    """Returns the Git commit of the checkout that this package runs from, if there is one."""
    folder = PACKAGE.parent
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
