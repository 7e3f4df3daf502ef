"""Measures the speed and memory of `dcgan` as one factor grows and the others stay fixed.

    python -m benchmarks.scaling [--factor=batch] [--rounds=3] [--secs=2]

The cases of a factor are measured alternately. `peak_gib` is the peak of the whole process.
"""

from typing import Any

from benchmarks import harness
from benchmarks.harness import Case

# The options of `trained.step` for each value of a factor.
FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "batch": {str(n): dict(batch_size=n) for n in (16, 32, 64, 128, 256, 512)},
    "side": {str(n): dict(side=n, image_size=n) for n in (32, 64, 128)},
    "width": {str(w): dict(g_width=w, d_width=w) for w in (0.25, 0.5, 1.0, 2.0)},
    "images": {f"{n:,}": dict(count=n) for n in (1_000, 10_000, 100_000)},
}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--factor", choices=FACTORS, help="measure only this factor")
    parser.set_defaults(rounds=3)
    options = parser.parse_args()
    rows = []
    for factor in [options.factor] if options.factor else FACTORS:
        cases = [
            Case(name, "benchmarks.trained:step", dict(recipe="dcgan", **changed))
            for name, changed in FACTORS[factor].items()
        ]
        for name, found in harness.measure(cases, rounds=options.rounds, secs=options.secs).items():
            rows.append(
                {
                    "grows": factor,
                    "to": name,
                    "images/s": found.rate,
                    "ms a step": 1000 * found.facts.get("batch", 0) / found.rate,
                    "peak_gib": found.facts.get("peak_gib", found.error),
                }
            )
    harness.report("scaling", rows)


if __name__ == "__main__":
    main()
