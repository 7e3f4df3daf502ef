"""Measures the peak memory of each recipe, and whether memory grows during a run.

    python -m benchmarks.memory [--steps=2000]

Each measurement is a run of the whole trainer in a separate process; sizes are those of the
resident set in GiB. Growth is measured with a small recipe that draws samples and saves often.
"""

import collections
import tempfile
from typing import Any

from benchmarks import harness, trained, whole

SMALL = "mlp-small"
REPORTED_STEPS = (50, 500, 2000)  # steps after which memory is reported


def peak(*, recipe: str, run_dir: str) -> dict[str, float]:
    """Returns the peak memory of a short run that draws samples and saves."""
    options: dict[str, Any] = dict(trained.shape_of(recipe))
    options.update(length="4 steps", sample_every="2 steps", checkpoint_every="2 steps")
    seconds: whole.Seconds = collections.defaultdict(list)
    whole.train(seconds, every_kimg=1000.0, recipe=recipe, run_dir=run_dir, **options)
    return {"peak_gib": harness.memory_gib()}


def growth(*, steps: int, run_dir: str) -> dict[int, float]:
    """Returns the resident memory by the number of steps done."""
    from trainer import recipes

    found = {}
    batch = recipes.resolve({"recipe": SMALL}).batch_size
    whole.train(
        collections.defaultdict(list),
        every_kimg=50 * batch / 1000,
        at=lambda step: found.update({step: harness.memory_gib("VmRSS")}),
        recipe=SMALL,
        run_dir=run_dir,
        length=f"{steps} steps",
        sample_every="10 steps",
        checkpoint_every="25 steps",
        log_every_steps=1,
    )
    return found


def main() -> None:
    from trainer import recipes

    parser = harness.parser(__doc__)
    parser.add_argument(
        "--steps",
        type=int,
        default=max(REPORTED_STEPS),
        help="steps of the run whose growth is measured",
    )
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe in recipes.RECIPES:
            found = harness.alone(
                "benchmarks.memory:peak", recipe=recipe, run_dir=f"{folder}/{recipe}"
            )
            batch = recipes.resolve({"recipe": recipe}).batch_size
            rows.append({"run": recipe, "batch": batch, **found})
        sizes = harness.alone(
            "benchmarks.memory:growth", steps=options.steps, run_dir=f"{folder}/growth"
        )
    for step in sorted({step for step in (*REPORTED_STEPS, options.steps) if step in sizes}):
        rows.append({"run": f"{SMALL} after {step} steps", "resident_gib": sizes[step]})
    harness.report("memory", rows, resident_gib_by_steps=sizes)


if __name__ == "__main__":
    main()
