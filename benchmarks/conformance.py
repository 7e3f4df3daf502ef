"""Compares networks with the numbers of published implementations.

    python -m benchmarks.conformance FILE.npz...

A file holds the parameters, inputs and outputs of small networks that a published implementation
computed.  The command loads the parameters into the networks of this package, at the sizes of the
file, and prints the largest difference of each array in parts of its largest value.  Outputs may
differ by 1e-5, losses, penalties and gradients by 1e-4.  Arrays without a counterpart are named.
The exit code is 1 if a difference is larger or a file cannot be read.
"""

import dataclasses
import importlib
import os
import sys
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer.errors import UsageError, first_line

if TYPE_CHECKING:
    from benchmarks.golden.arrays import Difference

NETWORKS = ("sngan", "r3gan")  # modules of benchmarks/golden/


@dataclasses.dataclass(frozen=True)
class Report:
    """The comparison of a file.

    Attributes:
      differences: a difference for each array that was compared.
      without_counterpart: names of the arrays that were not used.
    """

    differences: tuple["Difference", ...]
    without_counterpart: tuple[str, ...]

    @property
    def conforms(self) -> bool:
        """Whether all differences are within their bounds."""
        return all(difference.is_within for difference in self.differences)


def compare(path: str | os.PathLike) -> Report:
    """Compares the networks of a golden file.

    Raises:
      UsageError: if the file cannot be read, or lacks a parameter of its networks.
    """
    from benchmarks.golden.arrays import Golden

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is not a readable .npz file ({first_line(error)}).") from None
    differences, used = [], set()
    for name in NETWORKS:
        module = importlib.import_module(f"benchmarks.golden.{name}")
        for prefix in module.kinds(arrays):
            golden = Golden(arrays, prefix)
            try:
                module.compare(golden)
            except KeyError as error:
                raise UsageError(f"{path} lacks the array {error}.") from None
            differences += golden.differences
            used |= golden.used
    return Report(tuple(differences), tuple(name for name in arrays if name not in used))


def show(path: str, report: Report) -> None:
    """Prints a report."""
    print(f"{path}: {len(report.differences)} arrays compared")
    for difference in report.differences:
        verdict = "" if difference.is_within else f"  exceeds {difference.bound:g}"
        print(f"  {difference.value:8.1e}  {difference.name}{verdict}")
    if report.without_counterpart:
        print("  without counterpart:")
        for name in report.without_counterpart:
            print(f"            {name}")


def main(paths: Sequence[str]) -> int:
    """Compares files; returns the exit code."""
    if not paths or any(path.startswith("-") for path in paths):
        print(__doc__)
        return 0 if "--help" in paths else 64
    conform = []
    for path in paths:
        try:
            report = compare(path)
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            conform.append(False)
            continue
        show(path, report)
        conform.append(report.conforms)
    return 0 if all(conform) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
