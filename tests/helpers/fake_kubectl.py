"""A kubectl that renders manifests and otherwise only pretends to reach a cluster."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers import manifests as k8s


def fake_cluster(folder: Path, script: str) -> dict[str, str]:
    """Returns an environment whose kubectl renders manifests, and runs `script` otherwise."""
    k8s.submit("--overlay=cpu-smoke")  # skips the test if kubectl is missing
    fake = folder / "kubectl"
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = kustomize ] && exec {shutil.which("kubectl")} "$@"\n'
        'echo "$@" >> "${0%/*}/calls"\n'
        '[ "$1 $2" = "config current-context" ] && echo production\n'
        '[ "$1 $2" = "config view" ] && printf gan\n'
        f"{script}\nexit 0\n"
    )
    fake.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def apply(
    environment: dict[str, str], *arguments: str, overlay: str = "cpu-smoke"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, k8s.K8S / "submit.py", f"--overlay={overlay}", "--apply", *arguments],
        env=environment, text=True, capture_output=True, timeout=60,
    )  # fmt: skip
