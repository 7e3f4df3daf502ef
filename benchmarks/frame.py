"""Measures the overhead of the whole trainer over its compiled step and its bare updates.

    python -m benchmarks.frame [--recipes=dcgan,mlp] [--kimg=20] [--rounds=7] [--secs=10]

Set --secs to about the time that the trainer takes for --kimg, so that all programs are measured
equally long. The trainer draws samples, saves checkpoints and writes summaries at its default
intervals. `frame_%` is how much slower the trainer is than the bare updates in the median round,
and `loses_%` is the same over all rounds, including all periodic work. The other columns with %
are shares of the trainer's wall time.
"""

import statistics
import tempfile
from collections.abc import Mapping
from typing import Any

from benchmarks import harness, trained
from benchmarks.harness import Case, Measured

PERIODIC = ("samples", "evaluations", "saves", "summaries")


def divergence_check(recipe: str) -> float:
    """Returns the seconds that one check for values that are not finite takes."""
    import numpy as np
    import tensorflow as tf

    from trainer.training import loop
    from trainer.training.compiled_steps import _is_finite
    from trainer.training.divergence import check_finite
    from trainer.training.step import metric_names

    made = trained.parts(recipe=recipe, **trained.shape_of(recipe))
    names = metric_names(made.config, made.devices.precision)
    networks = made.variables.networks().values()
    rows = np.zeros((loop.MAX_STEPS, len(names)), np.float32)  # the metrics of the longest call

    @tf.function(autograph=False)
    def finite() -> list[tf.Tensor]:
        return [_is_finite(network.variables) for network in networks]

    def check() -> None:
        check_finite(rows, names, 0)
        [bool(is_finite) for is_finite in finite()]

    check()
    return statistics.median(harness.timed(check) for _ in range(50))


def row(recipe: str, kimg: float, rounds: int, secs: float, folder: str) -> dict[str, Any]:
    """Returns the table row of a recipe."""
    # As many images as MNIST has, because intervals may be given in epochs.
    options = dict(recipe=recipe, count=60_000, **trained.shape_of(recipe))
    paced = dict(every_kimg=kimg, run_dir=f"{folder}/{recipe}", **options)
    cases = [
        Case("trainer", "benchmarks.whole:case", paced),
        Case("step", "benchmarks.trained:step", options),
        Case("bare", "benchmarks.trained:bare_step", options),
    ]
    found = harness.measure(cases, rounds=rounds, secs=secs)
    for name, measured in found.items():
        if measured.error:
            raise RuntimeError(f"{name}: {measured.error}")
    trainer, bare = found["trainer"], found["bare"]
    checks = harness.alone("benchmarks.frame:divergence_check", recipe=recipe)
    return {
        "recipe": recipe,
        **{name: measured.rate for name, measured in found.items()},
        "frame_%": 100 * (1 - trainer.over(bare)),
        "loses_%": 100 * (1 - _mean(trainer) / _mean(bare)),
        "step_%": 100 * (1 - found["step"].over(bare)),
        "watching_%": 100 * checks / statistics.median(trainer.facts["steps"]),
        **shares(trainer.facts),
    }


def _mean(measured: Measured) -> float:
    """Returns images per second over all rounds, which all train on equally many images."""
    return statistics.harmonic_mean(measured.rates)


def shares(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Returns the shares of the trainer's wall time in percent."""
    wall = sum(seconds["wall"])
    found = {f"{name}_%": 100 * sum(seconds.get(name, [])) / wall for name in PERIODIC}
    outside = 100 * (1 - sum(seconds["steps"]) / wall)
    return {**found, "all_but_steps_%": outside}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.set_defaults(secs=10.0)
    parser.add_argument("--recipes", default="dcgan,mlp")
    parser.add_argument(
        "--kimg",
        type=float,
        default=20.0,
        help="thousands of images that the trainer processes per round",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row(recipe, options.kimg, options.rounds, options.secs, folder)
            for recipe in options.recipes.split(",")
        ]
    harness.report("frame", rows, kimg=options.kimg)


if __name__ == "__main__":
    main()
