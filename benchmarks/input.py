"""Measures the input pipeline from memory and from files, and how long steps wait for it.

    python -m benchmarks.input [--pictures=3000] [--rounds=7] [--secs=2]

`distributed` is the pipeline as the trainer uses it, and `bare` is the same tf.data pipeline
without a strategy. Both are consumed in a tf.function. `waiting_%` is how much longer a step
takes with the pipeline than with one batch that is already in memory, as the median over rounds.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import harness, trained
from benchmarks.harness import Case, Work

SETS = {"mnist": (60_000, 28, 1), "cifar10": (50_000, 32, 3)}
BATCHES = (64, 256)
DECODED = (1, 2)  # cores
SIDE = 128  # pixels of the image files, which are decoded to half of it


def batches(*, name: str, batch: int, distributed: bool) -> Work:
    """Returns work that reads batches of a data set in memory within a tf.function."""
    import tensorflow as tf

    from trainer import recipes
    from trainer.data import pipeline
    from trainer.machine import replicas

    data = trained.images(*SETS[name])
    plan = pipeline.BatchPlan(seed=0, batch_size=batch, batches_per_step=1)
    devices = replicas.create_replicas(recipes.resolve({"batch_size": batch, "devices": "cpu"}))

    def made(replicas: range) -> tf.data.Dataset:
        return pipeline.batches(data, plan, replicas=range(1), num_replicas=1)

    source = devices.make_iterator(made) if distributed else iter(made(range(1)))

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def take(count: tf.Tensor) -> None:
        for _ in tf.range(count):
            next(source)

    return Work(lambda count: take(tf.constant(count)), batch)


def from_memory(options: Any) -> list[dict[str, Any]]:
    """Returns the rates of the pipeline for data sets in memory."""
    rows = []
    for name in SETS:
        cases = [
            Case(f"{kind} {batch}", "benchmarks.input:batches",
                 dict(name=name, batch=batch, distributed=kind == "distributed"))
            for batch in BATCHES for kind in ("distributed", "bare")
        ]  # fmt: skip
        found = harness.measure(cases, rounds=options.rounds, secs=options.secs)
        rows += [
            {"input": f"{name} in memory, {case}", "images/s": measured.rate}
            for case, measured in found.items()
        ]
    return rows


def write_pictures(folder: Path, count: int, suffix: str) -> None:
    """Writes smooth colour images with some noise into ten class directories."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(smooth + draw.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / str(number % 10) / f"{number}.{suffix}")


def decode(*, folder: str, cores: int, cache: str) -> dict[str, float]:
    """Returns images per second of loading a directory by decoding its files and from the cache."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["XDG_CACHE_HOME"] = cache
    from trainer import recipes
    from trainer.data import sources

    config = recipes.resolve({"dataset": folder, "image_size": SIDE // 2})
    rates = {}
    for name in ("first", "from the cache"):
        began = time.perf_counter()
        data = sources.load(config)
        rates[name] = len(data) / (time.perf_counter() - began)
    return rates


def from_files(count: int) -> list[dict[str, Any]]:
    """Returns the rates of loading image files."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for suffix in ("png", "jpg"):
            folder = Path(scratch) / suffix
            write_pictures(folder, count, suffix)
            for cores in DECODED:
                rates = harness.alone(
                    "benchmarks.input:decode",
                    folder=str(folder), cores=cores, cache=f"{scratch}/cache-{suffix}-{cores}",
                )  # fmt: skip
                rows += [
                    {"input": f"{suffix}, {cores} cores, {when}", "images/s": rate}
                    for when, rate in rates.items()
                ]
    return rows


def waiting(*, recipe: str, rounds: int, secs: float) -> dict[str, float]:
    """Returns in percent how much longer steps take with the pipeline than with one batch."""
    made = trained.parts(recipe=recipe, count=60_000, **trained.shape_of(recipe))
    piped = made.advance(made.batches())
    same = made.advance(trained.SameBatch(made.batches()))
    ratios = harness.ratios(piped, same, rounds=rounds, secs=secs)
    low, middle, high = statistics.quantiles(ratios, n=4)
    error = (high - low) / len(ratios) ** 0.5  # about the standard error of the median
    return {"waiting_%": 100 * (middle - 1), "+-": 100 * error}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--pictures", type=int, default=3000, help="image files of each format")
    options = parser.parse_args()
    rows = from_memory(options) + from_files(options.pictures)
    short = dict(rounds=6 * options.rounds, secs=options.secs / 4)
    for recipe in ("dcgan", "mlp"):
        found = harness.alone("benchmarks.input:waiting", recipe=recipe, **short)
        rows.append({"input": f"steps of {recipe}", **found})
    harness.report("input", rows, pictures=options.pictures)


if __name__ == "__main__":
    main()
