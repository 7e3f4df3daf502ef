"""Compares the image quality that recipes reach in the same time on the same machine.

    python -m benchmarks.equal_time --data_dir=DIRECTORY --dataset=mnist --minutes=5 --seeds=0,1,2

Trains each recipe with and without augmentation, as often as there are seeds, and evaluates its
last checkpoint: 10,000 samples against the test images, with the features of one classifier of the
data set. The time includes the compilation. The first row shows real training images in place of
samples. Finished runs are kept in --runs and are not trained again.

With --jobs=2, two runs at a time have one half of the cores each.
"""

import argparse
import concurrent.futures
import json
import os
import queue
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from trainer.errors import ExitCode

# Small networks of recipes, for CPUs.
SMALL: dict[str, dict[str, Any]] = {
    "dcgan": dict(g_width=0.5, d_width=0.5, batch_size=32, g_lr=8e-4, d_lr=8e-4),
    "sngan": dict(
        g_width=0.125, d_width=0.125, d_steps=2, g_lr=4e-4, d_lr=4e-4, ema_half_life_kimg=5
    ),
    "r3gan": dict(
        g_width=0.05,
        d_width=0.05,
        hyperparameters="blocks=1",
        batch_size=32,
        g_lr=5e-4,
        d_lr=5e-4,
        r1=1,
        r2=1,
        ema_half_life_kimg=3,
    ),
}
# What the rows train, each conditional.
RUNS: dict[str, dict[str, Any]] = {
    "dcgan": dict(recipe="dcgan"),
    **{f"{name}-small": dict(recipe=name, **settings) for name, settings in SMALL.items()},
}
AUGMENTATIONS = ("none", "diffaugment")
NUM_SAMPLES = 10_000


def trained(folder: Path, settings: Mapping[str, Any], cores: Sequence[int]) -> dict[str, Any]:
    """Trains and evaluates a run on some cores; returns what its evaluation.json holds.

    Raises:
      RuntimeError: if a command fails.
    """
    result = folder / "evaluation.json"
    if not result.exists():
        flags = [f"--{name}={value}" for name, value in settings.items()]
        _call("train", cores, ExitCode.STOPPED, f"--run_dir={folder}", "--devices=cpu", *flags)
        where = (f"--run_dir={folder}", "--checkpoint=latest", f"--num_samples={NUM_SAMPLES}")
        _call("evaluate", cores, ExitCode.OK, *where, "--split=test", "--features=classifier")
    return json.loads(result.read_text(encoding="utf-8"))


def _call(command: str, cores: Sequence[int], expected: int, *flags: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", command, *flags],
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != expected:
        last = done.stdout.strip().rpartition("\n")[2]
        raise RuntimeError(f"{command} {' '.join(flags)}: exit code {done.returncode}: {last}")


def real_images(settings: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics of real training images in place of samples."""
    import numpy as np

    from trainer import recipes
    from trainer.data import sources
    from trainer.evaluation import features
    from trainer.evaluation.evaluator import EvaluationOptions, create_evaluator
    from trainer.metrics import registry

    config = recipes.resolve({**settings, "recipe": "dcgan", "devices": "cpu"})
    train, test = (sources.load(config.replace(split=split)) for split in ("train", "test"))
    options = EvaluationOptions("classifier", "", NUM_SAMPLES, 0)
    evaluator = create_evaluator(config.replace(split="test"), test, options)
    chosen = np.random.default_rng(0).permutation(len(train))[:NUM_SAMPLES]
    batches = np.array_split(train.images[chosen], -(-len(chosen) // features.BATCH))
    found = features.extract(evaluator.network, batches)
    labels = train.labels[chosen]
    return registry.measure(evaluator.reals.compare(found, labels, found.logits))


def row_of(run: str, augment: str, results: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Returns the row of a run: means over its seeds, and the spread of the FID."""
    fids = [result["fid"] for result in results]

    def mean(name: str) -> float:
        return statistics.fmean(result[name] for result in results)

    return {
        "run": run,
        "augment": augment,
        "seeds": len(results),
        "fid": mean("fid"),
        "fid_min": min(fids),
        "fid_max": max(fids),
        "as_asked": mean("conditional_accuracy"),
        "recall": mean("recall"),
        "kimg": mean("kimg"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default="", help="as the trainer's --data_dir")
    parser.add_argument("--dataset", default="mnist", help="as the trainer's --dataset")
    parser.add_argument("--minutes", type=float, default=5.0, help="duration of each run")
    parser.add_argument("--only", default=",".join(RUNS), help="comma-separated rows")
    parser.add_argument("--augment", default=",".join(AUGMENTATIONS), help="comma-separated")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated seeds")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/equal_time"), help="their folder")
    given = parser.parse_args(arguments)
    common = dict(dataset=given.dataset, data_dir=given.data_dir, conditional=True)
    cores = sorted(os.sched_getaffinity(0))
    free: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for job in range(given.jobs):
        free.put(cores[job :: given.jobs])

    def work(run: str, augment: str, seed: int) -> dict[str, Any]:
        own = free.get()
        try:
            name = f"{given.dataset}-{run}-{augment}-{seed}"
            limits = dict(max_hours=given.minutes / 60, kimg=10_000_000, seed=seed)
            chosen = RUNS[run] | dict(augment=augment)
            return trained(given.runs / name, common | limits | chosen, own)
        finally:
            free.put(own)

    seeds = [int(seed) for seed in given.seeds.split(",")]
    rows = [row_of("real images", "", [{**real_images(common), "kimg": 0.0}])]
    cases = [(r, a) for r in given.only.split(",") for a in given.augment.split(",")]
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        # All rows of a seed are trained before the next seed, so that an interrupted benchmark has
        # results of all rows.
        futures = {(case, seed): pool.submit(work, *case, seed) for seed in seeds for case in cases}
        for case in cases:
            rows.append(row_of(*case, [futures[case, seed].result() for seed in seeds]))
    facts = dict(dataset=given.dataset, minutes=given.minutes, jobs=given.jobs, seeds=seeds)
    harness.report(f"equal_time_{given.dataset}", rows, **facts)


if __name__ == "__main__":
    main()
