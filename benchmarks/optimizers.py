"""Compares training steps with the trainer's fused optimizers and with those of Keras.

    python -m benchmarks.optimizers [--rounds=7] [--secs=2]

The trainer's optimizers (trainer/training/optimizers.py) update each variable with one operation.
The columns show by how many percent steps are slower with the updates of Keras: the median over
rounds and the quartiles.
"""

from typing import Any
from unittest import mock

from benchmarks import harness, trained

RECIPES = ("mlp-small", "mlp", "dcgan", "dcgan-sigmoid")


def gain(*, recipe: str, rounds: int, secs: float) -> dict[str, float]:
    """Returns by how many percent a step is slower with the updates of Keras."""
    from trainer.training import optimizers

    def keras_class(fused: Any) -> Any:
        return mock.patch.object(fused, "update_step", fused.__mro__[1].update_step)

    made = trained.parts(recipe=recipe, **trained.shape_of(recipe))
    fused = made.advance(made.batches())
    fused(2)
    plain_parts = trained.parts(recipe=recipe, **trained.shape_of(recipe))
    with (
        keras_class(optimizers.Adam),
        keras_class(optimizers.RMSprop),
        keras_class(optimizers.SGD),
    ):
        plain = plain_parts.advance(plain_parts.batches())
        plain(2)  # traces the updates
    ratios = sorted(harness.ratios(plain, fused, rounds=rounds, secs=secs))
    count = len(ratios)
    return {
        "median_%": 100 * (ratios[count // 2] - 1),
        "low_%": 100 * (ratios[count // 4] - 1),
        "high_%": 100 * (ratios[3 * count // 4] - 1),
    }


def main() -> None:
    options = harness.parser(__doc__).parse_args()
    rows = []
    for recipe in RECIPES:
        timing = dict(rounds=3 * options.rounds, secs=options.secs / 2)
        rows.append(
            {
                "recipe": recipe,
                **harness.alone("benchmarks.optimizers:gain", recipe=recipe, **timing),
            }
        )
    harness.report("optimizers", rows)


if __name__ == "__main__":
    main()
