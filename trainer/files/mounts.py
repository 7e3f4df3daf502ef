"""Tells network file systems from local disks."""

import os
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = (
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse", "glusterfs", "gpfs", "lustre", "nfs", "nfs4",
    "smb3",
)  # fmt: skip
LOCAL_FUSE = ("fuse.fuse-overlayfs", "fuseblk")  # images of containers, and disks of Windows


def is_on_network(path: Path) -> bool:
    """Returns whether a file is on a network file system, or a bucket that is mounted."""
    real = os.path.realpath(path)
    mounts: dict[str, str] = {}
    try:
        for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split()
            # Optional fields end with "-", which the type follows; spaces in paths are octal.
            mounts[fields[4].replace("\\040", " ")] = fields[fields.index("-") + 1]
    except (OSError, ValueError, IndexError):
        return False
    while real not in mounts and real != "/":
        real = os.path.dirname(real)
    kind = mounts.get(real, "")
    return kind not in LOCAL_FUSE and (kind in NETWORK or kind.startswith("fuse."))
