"""Measures how long checkpoints and sample grids pause training.

    python -m benchmarks.stalls [--count=10] [--recipes=dcgan,dcgan-studiogan]

`median_ms` and `worst_ms` are taken over --count calls. `share_%` is the share of wall time
at the recipe's own intervals of saves and samples.
"""

import collections
import statistics
import tempfile
from typing import Any

from benchmarks import harness, trained, whole

STEPS = 2  # steps between two calls


def stalls(*, recipe: str, count: int, run_dir: str) -> dict[str, Any]:
    """Returns seconds of saves and samples, the steps' images/s, and the recipe's intervals."""
    from trainer import recipes

    shape: dict[str, Any] = trained.shape_of(recipe)
    own = recipes.resolve({"recipe": recipe})
    seconds: whole.Seconds = collections.defaultdict(list)
    whole.train(
        seconds,
        **shape,
        every_kimg=1000.0,
        recipe=recipe,
        run_dir=run_dir,
        length=f"{STEPS * count} steps",
        sample_every=f"{STEPS} steps",
        checkpoint_every=f"{STEPS} steps",
    )
    every = {"saves": own.checkpoint_every, "samples": own.sample_every}
    return {
        "seconds": dict(seconds),
        "images_per_sec": STEPS * count * own.batch_size / sum(seconds["steps"]),
        "every": {name: pace.images(own.batch_size, 60_000) for name, pace in every.items()},
    }


def rows_of(recipe: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for saves and a row for samples."""
    rows = []
    for name, every in found["every"].items():
        taken = found["seconds"][name]
        secs_between = every / found["images_per_sec"]
        middle = statistics.median(taken)
        rows.append(
            {
                "what": f"{name} of {recipe}",
                "calls": len(taken),
                "median_ms": 1000 * middle,
                "worst_ms": 1000 * max(taken),
                "every_kimg": every / 1000,
                "share_%": 100 * middle / (middle + secs_between),
            }
        )
    return rows


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--recipes", default="dcgan,dcgan-studiogan")
    parser.add_argument("--count", type=int, default=10, help="number of saves and of samples")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe in options.recipes.split(","):
            found = harness.alone(
                "benchmarks.stalls:stalls",
                recipe=recipe, count=options.count, run_dir=f"{folder}/{recipe}",
            )  # fmt: skip
            rows += rows_of(recipe, found)
    harness.report("stalls", rows)


if __name__ == "__main__":
    main()
