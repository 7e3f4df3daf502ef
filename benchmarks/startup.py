"""Seconds from a command to its answer: --help, --dry_run, a first step, and going on.

    python -m benchmarks.startup [--rounds=5]

A first step of `dcgan` on digits on the CPU is timed from outside, at the line of
metrics.jsonl that it leaves; its phases are timed from inside, in runs of their own.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import harness

RUN = ("--recipe=dcgan", "--dataset=digits", "--devices=cpu", "--log_every_secs=0")


def answered(*arguments: str) -> float:
    """Seconds that a command takes to its end."""
    command = [sys.executable, "-m", "trainer", *arguments]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def stepped(run_dir: Path, steps: int) -> tuple[float, float]:
    """Seconds to the line of the last of `steps` steps, and to the end of the command."""
    command = ["train", *RUN, f"--run_dir={run_dir}", f"--steps={steps}"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *command], stdout=subprocess.DEVNULL
    )
    while not _has_step(run_dir / "metrics.jsonl", steps):
        if process.poll() is not None:
            raise RuntimeError(f"trainer {' '.join(command)}: exit code {process.returncode}")
        time.sleep(0.01)
    line = time.perf_counter() - began
    process.wait()
    return line, time.perf_counter() - began


def _has_step(record: Path, step: int) -> bool:
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    try:
        return any(json.loads(line)["step"] >= step for line in lines)
    except ValueError:  # half a line
        return False


def phases(run_dir: str) -> dict[str, float]:
    """Seconds of the phases of the first step, in this fresh process.

    They follow one another; what lies between two is added to the later one.
    """
    marks = [("", time.perf_counter())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))

    from trainer import recipes
    from trainer.data import sources

    config = recipes.resolve({"recipe": "dcgan", "devices": "cpu", "run_dir": run_dir})
    config = config.replace(length=type(config.length)(1.0, "steps"))
    data = sources.load(config)
    mark("flags and data")
    import tensorflow  # noqa: F401

    mark("import of TensorFlow")
    from trainer import train as trainer
    from trainer.reporting.console import Console
    from trainer.training import loop, state

    mark("import of Keras and the trainer")
    create, loop_run = state.create, loop.run

    def created(*args: Any) -> Any:
        mark("devices")
        made = create(*args)
        mark("networks and optimizers")
        return made

    def run(*, advance: Callable[[int], Any], **others: Any) -> Any:
        def advanced(steps: int) -> Any:
            mark("first samples and save" if not steps else "")
            rows = advance(steps)
            mark("tracing and compiling the step" if not steps else "first step")
            return rows

        return loop_run(advance=advanced, **others)

    with mock.patch.object(state, "create", created), mock.patch.object(loop, "run", run):
        trainer.train(config, data, terminal=Console(), stop_requested=lambda: False)
    ends = itertools.pairwise(marks)
    return {name: end - began for (_, began), (name, end) in ends if name}


def rows_of(rounds: int, folder: Path) -> list[dict[str, object]]:
    """Medians of what is timed, over rounds of all of it."""
    taken: dict[str, list[float]] = {}
    for number in range(rounds):
        run_dir = folder / str(number)
        found = {
            "train --help": answered("train", "--help"),
            "train --dry_run": answered("train", "--dry_run"),
        }
        found["first step"], found["one step to the end"] = stepped(run_dir, 1)
        found["first step after resuming"], _ = stepped(run_dir, 2)
        inside = harness.alone("benchmarks.startup:phases", run_dir=str(folder / f"in-{number}"))
        found.update({f"  of it {name}": secs for name, secs in inside.items()})
        for name, secs in found.items():
            taken.setdefault(name, []).append(secs)
    return [
        {"what": name, "seconds": statistics.median(secs), "worst": max(secs)}
        for name, secs in taken.items()
    ]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.set_defaults(rounds=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        harness.report("startup", rows_of(options.rounds, Path(folder)))


if __name__ == "__main__":
    main()
