"""Compares the training speed of this version of the trainer with that of another one.

    git worktree add --detach ../other v1.2.0
    python -m benchmarks.versions ../other --recipes=dcgan,mlp

The versions take turns, so that a machine whose speed varies slows both down. Both are started
several times, because a process may be a few percent slower than an equal one for its whole life.
The column `ratio` is the median over rounds of this version's speed divided by that of the other
one, and the columns `q1` and `q3` are its quartiles. Both versions must have the module
benchmarks.trained.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness, trained

RECIPES = "dcgan,dcgan-sigmoid,mlp-small,dcgan-kstep,cgan,mlp,dcgan-studiogan,sngan,r3gan"
SMALL = {"sngan": dict(g_width=0.25, d_width=0.25), "r3gan": dict(g_width=0.125, d_width=0.125)}
HERE = Path(__file__).parents[1]

# What a process runs in the folder of its version. It writes a line when it has compiled the steps,
# and a line with the seconds that it took for each number of steps that it reads.
WORKER = """
import json, os, sys, time
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from benchmarks import trained
work = trained.step(**json.loads(sys.argv[1]))
work.call(1)
print(work.units, file=out, flush=True)
for line in sys.stdin:
    began = time.perf_counter()
    work.call(int(line))
    print(time.perf_counter() - began, file=out, flush=True)
"""


class Version:
    """A process that trains with one version of the trainer when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Waits until the process has compiled its steps.

        Raises:
          RuntimeError: if it fails.
        """
        self._process = process
        self.images_per_step = self._read()

    def secs(self, steps: int) -> float:
        """Trains some steps and returns the seconds that they take."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a version failed; see its error above")
        return float(line)


@contextlib.contextmanager
def started(folder: Path, options: dict[str, Any]) -> Iterator[Version]:
    """Yields the process of the version in a folder.

    Args:
      folder: the root of a working tree.
      options: those of benchmarks.trained.step.
    """
    command = [sys.executable, "-c", WORKER, json.dumps(options)]
    environment = dict(os.environ, PYTHONPATH=str(folder), TF_CPP_MIN_LOG_LEVEL="3")
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, text=True
    )
    try:
        yield Version(process)
    finally:
        process.kill()
        process.communicate()


def compare(
    ours: Version, other: Version, *, rounds: int, secs: float
) -> tuple[list[float], list[float]]:
    """Returns the seconds a step of each version in each round."""
    steps = 1
    while (taken := ours.secs(steps)) < 0.25 * secs:
        steps *= 4
    steps = max(1, round(steps * secs / taken))
    other.secs(steps)
    times: dict[Version, list[float]] = {ours: [], other: []}
    for number in range(rounds):
        for version in (ours, other) if number % 2 else (other, ours):
            times[version].append(version.secs(steps) / steps)
    return times[ours], times[other]


def row_of(
    recipe: str, other: Path, options: dict[str, Any], *, starts: int, **how: Any
) -> dict[str, Any]:
    """Measures a recipe with both versions.

    Args:
      recipe: the name of the recipe.
      other: the folder of the other version.
      options: further options of benchmarks.trained.step.
      starts: how often both versions are started.
      **how: see `compare`.
    """
    options = dict(recipe=recipe, **trained.shape_of(recipe), **SMALL.get(recipe, {}), **options)
    own: list[float] = []
    others: list[float] = []
    for _ in range(starts):
        with started(HERE, options) as ours, started(other, options) as theirs:
            times = compare(ours, theirs, **how)
            own += times[0]
            others += times[1]
            images = ours.images_per_step
    ratios = [b / a for a, b in zip(own, others, strict=True)]
    q1, ratio, q3 = statistics.quantiles(ratios, n=4)
    return {
        "recipe": recipe,
        "other images/s": images / statistics.median(others),
        "images/s": images / statistics.median(own),
        "ratio": ratio,
        "q1": q1,
        "q3": q3,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.set_defaults(rounds=8, secs=1.0)
    parser.add_argument("--starts", type=int, default=4, help="how often both are started")
    parser.add_argument("other", type=Path, help="root of the other version's working tree")
    parser.add_argument("--recipes", default=RECIPES, help="comma-separated recipes")
    parser.add_argument("--devices", default="cpu", help="as the trainer's --devices, one device")
    parser.add_argument("--precision", default="float32", help="as the trainer's --precision")
    given = parser.parse_args(arguments)
    options = dict(devices=given.devices, precision=given.precision)
    how = dict(starts=given.starts, rounds=given.rounds, secs=given.secs)
    rows = []
    for recipe in given.recipes.split(","):
        rows.append(row_of(recipe, given.other.resolve(), options, **how))
        harness.print_table(rows[-1:])
    harness.report("versions", rows, **options, **how)


if __name__ == "__main__":
    main()
