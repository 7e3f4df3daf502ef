"""Checks a GPU and measures the trainer on it, in one command for the first minutes on a card.

    python -m benchmarks.gpu [PART ...] [--devices=gpu:0] [--recipes=dcgan,cgan] [--tiny]

All parts run by default, in this order. Each prints a table, and all tables are written to
results/gpu.json, where a part replaces what an earlier call wrote.

  devices  what `doctor` finds: GPUs, driver, libraries and a self-test
  kernels  a convolution, a batch norm and a matrix product in each number format, against the CPU
  speed    each recipe in each number format, at two batch sizes, with and without XLA
  same     losses of the first float32 steps, against the CPU
  two      losses of the first float32 steps on two logical GPUs of one card, against one
  repeat   the weights of a deterministic run, against a second one and one that is killed
  memory   the message about a batch that does not fit into the memory
  torch    the speed of `dcgan`, against the same networks in PyTorch, eager and compiled
  environment  the speed of some recipes with environment variables that TensorFlow reads

Every run of the trainer has a process of its own, so that one that fails does not affect the
others. The exit code is 1 if a part failed or a row of a check is not `ok`. --tiny shrinks the
networks and the number of steps, to try the parts on a CPU.
"""

import argparse
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import harness, training
from benchmarks.gpu_runs import METRICS, Row

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
SAME_TOLERANCE = 1e-4  # difference of losses in float32, relative to losses above 1
TWO_TOLERANCE = 1e-3  # sums over replicas are rounded in another order
LOGICAL_GPU_MIB = 8192  # memory of each of two logical GPUs
VARIABLES = ("TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT=1", "TF_GPU_THREAD_MODE=gpu_private")
TINY = dict(g_width=0.05, d_width=0.05, sample_grid=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the parts run.

    Attributes:
      devices: as the trainer's --devices, one device.
      recipes: recipes to run; empty for a part's own.
      precisions: number formats to measure.
      batches: batch sizes to measure.
      steps: steps of a measurement of speed.
      repeat_steps: steps of the runs that are repeated.
      secs: seconds of a measurement of PyTorch.
      xla: values of --xla to measure.
      settings: settings of all runs.
      call: calls a function of gpu_runs by its name, in a process of its own.
    """

    devices: str
    recipes: tuple[str, ...] = ()
    precisions: tuple[str, ...] = PRECISIONS
    batches: tuple[int, ...] = (64, 1024)
    steps: int = 400
    repeat_steps: int = 1000  # enough that the run is killed before its end
    secs: float = 3.0
    xla: tuple[str, ...] = ("off", "on")
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    call: Callable[..., Any] = lambda name, **options: harness.alone(
        f"benchmarks.gpu_runs:{name}", **options
    )

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.devices.startswith("gpu")


def devices_part(options: Options) -> Iterator[Row]:
    """Yields the lines of `doctor`."""
    yield from options.call("doctor_lines")


def kernels_part(options: Options) -> Iterator[Row]:
    """Yields the error and the time of the main operations in each number format."""
    for precision in options.precisions:
        for row in options.call("kernel_rows", devices=options.devices, precision=precision):
            yield {"precision": precision, **row}


def speed_part(options: Options) -> Iterator[Row]:
    """Yields the speed of each recipe in each number format."""
    from trainer.recipes import RECIPES

    cases = itertools.product(
        options.recipes or tuple(RECIPES), options.batches, options.precisions, options.xla
    )
    for recipe, batch, precision, xla in cases:
        given = {"recipe": recipe, "batch": batch, "precision": precision, "xla": xla}
        settings = {**options.settings, "devices": options.devices, "steps": options.steps}
        yield given | _row_or_problem(options, "speed_row", **settings, **given)


def _row_or_problem(options: Options, function: str, **arguments: Any) -> Row:
    try:
        return dict(options.call(function, **arguments))
    except RuntimeError as error:
        return {"ok": False, "problem": str(error)}


def same_part(options: Options) -> Iterator[Row]:
    """Yields the largest difference between losses on the device and on the CPU."""
    yield from _compared(options, {"devices": "cpu"}, {"devices": options.devices}, SAME_TOLERANCE)


def two_part(options: Options) -> Iterator[Row]:
    """Yields the largest difference between losses on two logical devices and on one."""
    two: Row = {"devices": options.devices if options.on_gpu else "cpu:2"}
    if options.on_gpu:
        two["logical_mib"] = [LOGICAL_GPU_MIB] * 2
    yield from _compared(options, {"devices": options.devices}, two, TWO_TOLERANCE)


def _compared(options: Options, first: Row, second: Row, tolerance: float) -> Iterator[Row]:
    for recipe in options.recipes or ("dcgan", "cgan", "mlp"):
        settings = {**options.settings, "recipe": recipe}
        losses = [options.call("first_losses", **settings, **where) for where in (first, second)]
        differences = [
            abs(a[name] - b[name]) / max(abs(a[name]), 1.0)
            for a, b in zip(*losses, strict=True)
            for name in METRICS
        ]
        largest = max(differences)
        steps = dict(first_step=differences[0], largest=largest)
        yield {"recipe": recipe, **steps, "ok": largest <= tolerance}


def repeat_part(options: Options) -> Iterator[Row]:
    """Yields whether deterministic runs end with the same bits, also after a kill -9."""
    # cuBLAS is deterministic only with a fixed workspace, which it reads when it is loaded.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for recipe in options.recipes or ("dcgan", "mlp"):
        settings = {
            **options.settings, "recipe": recipe, "devices": options.devices, "batch_size": 16,
            "deterministic": True, "steps": options.repeat_steps, "xla": "off",
            "checkpoint_every_kimg": 0.016 * max(1, options.repeat_steps // 8),
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            was_killed = _train_until_killed(f"{folder}/killed", settings)
            settings["checkpoint_every"] = settings.pop("checkpoint_every_kimg")
            sums = {
                name: options.call("final_weights", run_dir=f"{folder}/{name}", **settings)
                for name in ("first", "second", "killed")
            }
        yield {"recipe": recipe, **sums, "ok": was_killed and len(set(sums.values())) == 1}


def _train_until_killed(run_dir: str, settings: Mapping[str, Any]) -> bool:
    """Kills a run as soon as it has a checkpoint after its first; returns whether it still ran."""
    flags = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "trainer", "train", "--dataset=digits", *flags]
    with subprocess.Popen(
        [*command, f"--run_dir={run_dir}"], stdout=subprocess.DEVNULL, env=dict(os.environ)
    ) as process:
        checkpoints = Path(run_dir) / "checkpoints"
        while process.poll() is None and len(list(checkpoints.glob("ckpt-*.json"))) < 2:
            time.sleep(0.01)
        process.kill()
    return process.returncode == -signal.SIGKILL


def memory_part(options: Options) -> Iterator[Row]:
    """Yields the trainer's message about a batch that does not fit into a small logical GPU."""
    settings = {
        "g_width": 4.0, "d_width": 4.0, **options.settings, "recipe": "dcgan", "xla": "off",
        "devices": options.devices, "steps": 2, "batch_size": max(options.batches),
    }  # fmt: skip
    message = options.call("out_of_memory_message", **settings)
    yield {
        "message": message or "none: the batch fits",
        "ok": "The device's memory is too small" in message or not options.on_gpu,
    }


def torch_part(options: Options) -> Iterator[Row]:
    """Yields the speed of `dcgan` beside that of PyTorch."""
    for name in ("dcgan", "dcgan-conditional"):
        for batch, precision in itertools.product(options.batches, options.precisions):
            settings = {**training.settings_of(name), "batch_size": batch}
            shape = training.side_and_channels(name, 0, 0)
            made = training.cases(settings, precision, shape, gpu=options.on_gpu, compile_too=True)
            chosen = [case for case in made if case.name != "tensorflow"]
            measured = harness.measure(chosen, rounds=3, secs=options.secs)
            yield training.row_of(name, precision, measured)


def environment_part(options: Options) -> Iterator[Row]:
    """Yields the speed of recipes without and with each of VARIABLES."""
    given = {"batch": options.batches[0], "precision": options.precisions[0], "xla": "off"}
    settings = {**options.settings, "devices": options.devices, "steps": options.steps}
    for recipe in options.recipes or ("dcgan", "dcgan-studiogan"):
        for variable in ("", *VARIABLES):
            name, _, value = variable.partition("=")
            with mock.patch.dict(os.environ, {name: value} if name else {}):
                row = _row_or_problem(options, "speed_row", recipe=recipe, **settings, **given)
            yield {"recipe": recipe, "variable": variable, **given, **row}


PARTS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "devices": devices_part,
    "kernels": kernels_part,
    "speed": speed_part,
    "same": same_part,
    "two": two_part,
    "repeat": repeat_part,
    "memory": memory_part,
    "torch": torch_part,
    "environment": environment_part,
}


def run_part(part: str, options: Options, out: Path) -> bool:
    """Prints the rows of a part and writes each to a file; returns whether the part passed."""
    print(f"\n{part}", flush=True)
    rows: list[Row] = []
    try:
        for row in PARTS[part](options):
            rows.append(row)
            write(out, part, rows, options)
            print("  ".join(f"{name}={_short(value)}" for name, value in row.items()), flush=True)
    except RuntimeError as error:
        rows.append({"ok": False, "problem": str(error)})
        write(out, part, rows, options)
    print()
    harness.print_table(rows)
    return all(row.get("ok", True) for row in rows)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(path: Path, part: str, rows: Sequence[Row], options: Options) -> None:
    """Writes the rows of a part to the results, and keeps the other parts."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    measured = {"machine": harness.machine(), "devices": options.devices, "rows": list(rows)}
    results.setdefault("parts", {})[part] = measured
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts and prints their tables; returns 1 if a part failed, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--devices", default="gpu:0", help="as the trainer's --devices")
    parser.add_argument("--recipes", default="", help="recipes to run instead of a part's own")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--batches", default="64,1024", help="batch sizes of speed and torch")
    parser.add_argument("--tiny", action="store_true", help="shrink networks and runs")
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "gpu.json")
    given = parser.parse_args(arguments)
    for part in given.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}: choose from {', '.join(PARTS)}")
    options = Options(
        devices=given.devices,
        recipes=tuple(filter(None, given.recipes.split(","))),
        precisions=tuple(given.precisions.split(",")),
        batches=tuple(map(int, given.batches.split(","))),
    )
    if given.tiny:
        options = dataclasses.replace(options, steps=8, secs=0.1, xla=("off",), settings=TINY)
    passed = [run_part(part, options, given.out) for part in given.parts or PARTS]
    print(f"\n{given.out}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
