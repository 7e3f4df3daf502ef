"""Compares networks and augmentations with the numbers of published implementations.

    python -m benchmarks.conformance FILE.npz...

A file holds the parameters, inputs and outputs of small networks, or the draws, inputs and outputs
of augmentations, that a published implementation computed.  The command loads the parameters into
the networks of this package, at the sizes of the file, and prints the largest difference of each
array in parts of its largest value.  Outputs may differ by 1e-5, losses, penalties and gradients by
1e-4.  Arrays without a counterpart are named.  The exit code is 1 if a difference is larger, or if
a file cannot be read or has nothing to compare.
"""

import dataclasses
import importlib
import os
import sys
import zipfile
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer.errors import UsageError

if TYPE_CHECKING:
    from benchmarks.golden.arrays import Difference

MODULES = ("sngan", "r3gan", "augment")  # modules of benchmarks/golden/


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
    """Compares the networks and the augmentations of a golden file.

    Raises:
      UsageError: if the file cannot be read, lacks a parameter of its networks, has an array whose
        shape does not fit the others, or has nothing to compare.
    """
    import tensorflow as tf

    from benchmarks.golden.arrays import Golden, ShapeError

    arrays = _read(path)
    differences, used = [], set()
    for name in MODULES:
        module = importlib.import_module(f"benchmarks.golden.{name}")
        for prefix in module.kinds(arrays):
            golden = Golden(arrays, prefix)
            try:
                module.compare(golden)
            except KeyError as error:
                raise UsageError(f"{path} lacks the array {error}.") from None
            except ShapeError as error:
                raise UsageError(f"{path}: {error}.") from None
            except (ValueError, IndexError, TypeError, tf.errors.OpError):
                inputs = [n for n in golden.names("") if "in" in n.split("/")]
                raise UsageError(
                    f"{path}: the shapes of its arrays do not fit each other. Its inputs are "
                    f"{', '.join(f'{n} {list(golden[n].shape)}' for n in inputs)}."
                ) from None
            differences += golden.differences
            used |= golden.used
    if not differences:
        raise UsageError(
            f"{path} has nothing to compare: none of its {len(arrays)} arrays has a counterpart."
        )
    return Report(tuple(differences), tuple(name for name in arrays if name not in used))


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name.

    Raises:
      UsageError: if it cannot be read.
    """
    try:
        if not zipfile.is_zipfile(path):
            os.stat(path)  # says why, if the file cannot be found
            raise UsageError(f"{path} is not an .npz file.")
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, TypeError, AttributeError, zlib.error, zipfile.BadZipFile):
        raise UsageError(f"{path} is damaged, or holds other things than numbers.") from None


def show(path: str, report: Report) -> None:
    """Prints a report."""
    print(f"{path}: {len(report.differences)} arrays compared")
    for difference in report.differences:
        verdict = "" if difference.is_within else f"  exceeds {difference.bound:g}"
        if difference.shapes:
            verdict = f"  {difference.shapes}"
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
