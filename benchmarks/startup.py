"""Measures the time to --help, to --dry_run, and to the first step of new and resumed runs.

    python -m benchmarks.startup [--rounds=5]

The first step of `dcgan` on digits on the CPU is timed from outside, until its line appears in
metrics.jsonl. The phases of start-up are timed inside separate runs.
"""

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import harness

RUN = ("--recipe=dcgan", "--dataset=digits", "--devices=cpu", "--log_every_secs=0")


def command_secs(*arguments: str) -> float:
    """Returns the seconds until a command ends."""
    command = [sys.executable, "-m", "trainer", *arguments]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_step_secs(run_dir: Path, steps: int) -> tuple[float, float]:
    """Returns the seconds until the last step is recorded, and until the command ends."""
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
    except ValueError:  # the last line is incomplete
        return False


def phases(run_dir: str) -> dict[str, float]:
    """Returns the seconds of each phase until the first step; must be called in a new process.

    Time between two phases counts towards the later one.
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
    from trainer.training import loop

    mark("import of Keras and the trainer")
    create, train_steps = trainer.create_state, loop.train_steps

    def created(*args: Any) -> Any:
        mark("devices")
        made = create(*args)
        mark("networks and optimizers")
        return made

    def marked(plan: loop.LoopPlan, functions: loop.LoopFunctions) -> int:
        def marked_steps(steps: int) -> Any:
            mark("first samples and save" if not steps else "")
            rows = functions.run_steps(steps)
            mark("tracing and compiling the step" if not steps else "first step")
            return rows

        return train_steps(plan, dataclasses.replace(functions, run_steps=marked_steps))

    with (
        mock.patch.object(trainer, "create_state", created),
        mock.patch.object(loop, "train_steps", marked),
    ):
        trainer.train(config, data, trainer.Control(terminal=Console()))
    ends = itertools.pairwise(marks)
    return {name: end - began for (_, began), (name, end) in ends if name}


def rows_of(rounds: int, folder: Path) -> list[dict[str, object]]:
    """Returns the median and the maximum of each time over the rounds."""
    taken: dict[str, list[float]] = {}
    for number in range(rounds):
        run_dir = folder / str(number)
        found = {
            "train --help": command_secs("train", "--help"),
            "train --dry_run": command_secs("train", "--dry_run"),
        }
        found["first step"], found["one step to the end"] = first_step_secs(run_dir, 1)
        found["first step after resuming"], _ = first_step_secs(run_dir, 2)
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
