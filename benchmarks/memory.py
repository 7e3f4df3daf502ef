"""Measures the peak memory of each recipe, and whether memory grows during a run.

    python -m benchmarks.memory [--steps=2000]

Each measurement is a run of the whole trainer in a separate process; sizes are those of the
resident set in GiB. Growth is measured with a small recipe that draws samples and saves often.

The memory that each further image of a batch takes is measured with two batch sizes, beside what
the trainer estimates at its start.
"""

import collections
import tempfile
from typing import Any

from benchmarks import harness, trained, whole
from benchmarks.equal_time import SMALL as SMALL_NETWORKS

SMALL = "mlp-small"
BATCHES = (64, 512)  # whose difference in memory is compared with the estimate
REPORTED_STEPS = (50, 500, 2000)  # steps after which memory is reported


def peak(*, recipe: str, run_dir: str, **settings: Any) -> dict[str, float]:
    """Returns the peak memory of a short run that draws samples and saves."""
    options: dict[str, Any] = dict(trained.shape_of(recipe))
    options.update(length="4 steps", sample_every="2 steps", checkpoint_every="2 steps", **settings)
    seconds: whole.Seconds = collections.defaultdict(list)
    whole.train(seconds, every_kimg=1000.0, recipe=recipe, run_dir=run_dir, **options)
    return {"peak_gib": harness.memory_gib()}


def estimate(*, recipe: str, **settings: Any) -> float:
    """Returns what the trainer estimates that a step takes, in GiB."""
    from trainer import recipes
    from trainer.config.dataset import ImageShape
    from trainer.recipes.networks import build_networks
    from trainer.training.cost import Cost

    shape = trained.shape_of(recipe)
    config = recipes.resolve({"recipe": recipe, **settings})
    networks = build_networks(config, ImageShape.square(shape["side"], shape["channels"], 10))
    return Cost.of(config, *networks).bytes_per_device(config.batch_size) / 2**30


def per_image(recipe: str, folder: str, **settings: Any) -> dict[str, Any]:
    """Returns the memory that each further image of a batch takes, measured and estimated."""
    measured, estimated = [], []
    for batch in BATCHES:
        options = dict(recipe=recipe, batch_size=batch, **settings)
        run_dir = f"{folder}/{recipe}-{batch}"
        found = harness.alone("benchmarks.memory:peak", run_dir=run_dir, **options)
        measured.append(found["peak_gib"])
        estimated.append(harness.alone("benchmarks.memory:estimate", **options))
    images = (BATCHES[1] - BATCHES[0]) / 1024  # so that the results are in MiB
    return {
        "run": ", ".join([recipe, "a further image", *(f"{k} {v}" for k, v in settings.items())]),
        "mib": (measured[1] - measured[0]) / images,
        "estimated_mib": (estimated[1] - estimated[0]) / images,
    }


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
        for recipe in recipes.RECIPES:
            small = SMALL_NETWORKS.get(recipe, {})
            widths = {name: small[name] for name in ("g_width", "d_width") if name in small}
            rows.append(per_image(recipe, folder, **widths))
    for step in sorted({step for step in (*REPORTED_STEPS, options.steps) if step in sizes}):
        rows.append({"run": f"{SMALL} after {step} steps", "resident_gib": sizes[step]})
    harness.report("memory", rows, resident_gib_by_steps=sizes)


if __name__ == "__main__":
    main()
