"""Measures the time and peak memory of each metric in a separate process.

    python -m benchmarks.evaluation [--samples=10000,50000] [--widths=128,2048]

The features are random, and there are as many real images as samples. Features of the data set's
own classifier have a width of 128 and those of Inception have a width of 2,048.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import harness

METRICS = ("fid", "kid", "inception_score", "neighbours")
CLASSES = {128: 10, 2048: 1008}  # number of logits for each width of features


def features(samples: int, width: int, seed: int) -> np.ndarray:
    """Returns correlated, nonnegative features [samples, width], as those after a ReLU."""
    draw = np.random.default_rng(seed)
    mixing = draw.normal(0.0, 1.0, (64, width)).astype(np.float32)
    found = draw.normal(0.0, 1.0, (samples, 64)).astype(np.float32) @ mixing
    found += draw.normal(0.1, 4.0, (samples, 1)).astype(np.float32)
    return np.maximum(found, 0.0, out=found)


def metric(*, name: str, samples: int, width: int) -> dict[str, Any]:
    """Returns a metric's time and peak memory, and the resident memory before it."""
    from trainer.metrics import distances, neighbours
    from trainer.metrics.moments import Moments

    reals, fakes = features(samples, width, 1), features(samples, width, 2)
    logits = fakes[:, : CLASSES.get(width, 10)]
    known = Moments.of(reals) if name == "fid" else None  # the trainer caches them
    calls: dict[str, Callable[[], Any]] = {
        "fid": lambda: distances.fid(known or Moments.of(reals), Moments.of(fakes)),
        "kid": lambda: distances.kid(reals, fakes),
        "inception_score": lambda: distances.inception_score(logits),
        "neighbours": lambda: neighbours.manifold(reals, fakes),
    }
    before = harness.memory_gib("VmRSS")
    seconds = harness.timed(calls[name])
    peak = harness.memory_gib()
    return {"seconds": seconds, "peak_gib": peak, "features_gib": before}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--samples", default="10000,50000")
    parser.add_argument("--widths", default="128,2048")
    parser.add_argument("--metrics", default=",".join(METRICS))
    options = parser.parse_args()
    rows = []
    for samples in map(int, options.samples.split(",")):
        for width in map(int, options.widths.split(",")):
            for name in options.metrics.split(","):
                found = harness.alone(
                    "benchmarks.evaluation:metric", name=name, samples=samples, width=width
                )
                rows.append({"metric": name, "samples": samples, "width": width, **found})
    harness.report("evaluation", rows)


if __name__ == "__main__":
    main()
