"""The order of the updates of a step, as a setting and as a parsed value."""

import dataclasses
from collections.abc import Mapping
from typing import Any

BATCHES = ("joint", "separate", "sequential")
FAKES = ("new", "reuse", "simultaneous")


@dataclasses.dataclass(frozen=True)
class UpdateRule:
    """How the networks are updated in a step.

    Attributes:
      batches: the batches of a discriminator update.  joint: one batch of reals and fakes;
        separate: a batch of reals and a batch of fakes, whose losses are summed; sequential: an
        update on reals, then an update on fakes.
      fakes: the fakes of the generator update.  new: from new latent vectors; reuse: those of
        the last discriminator update; simultaneous: those of the only discriminator update, and
        both gradients are computed before either network changes.
    """

    batches: str
    fakes: str

    @classmethod
    def parse(cls, text: str) -> "UpdateRule":
        """Reads one of UPDATE_RULES."""
        batches, _, fakes = text.partition("-")
        return cls(batches, fakes or "new")

    def __str__(self) -> str:
        return self.batches if self.fakes == "new" else f"{self.batches}-{self.fakes}"


UPDATE_RULES = tuple(
    str(UpdateRule(batches, fakes))
    for batches in BATCHES
    for fakes in FAKES
    if (batches, fakes) != ("sequential", "simultaneous")
)


def from_replaced_settings(replaced: Mapping[str, Any], base: str) -> str:
    """Returns the update rule that the settings of version 0.1 describe.

    Args:
      replaced: those of the settings d_update, simultaneous and reuse_fakes that are given.
      base: the rule whose values take the place of those that are not given.
    """
    rule = UpdateRule.parse(base)
    simultaneous = replaced.get("simultaneous", rule.fakes == "simultaneous")
    reuse = replaced.get("reuse_fakes", rule.fakes == "reuse")
    fakes = "simultaneous" if simultaneous else "reuse" if reuse else "new"
    return str(UpdateRule(replaced.get("d_update", rule.batches), fakes))
