"""Signs that training goes wrong: values that are not finite, and mode collapse."""

import logging
from collections.abc import Callable

import numpy as np

from trainer.config import Config
from trainer.errors import NotFiniteError
from trainer.models.objective import OBJECTIVES

log = logging.getLogger(__name__)

ALWAYS_RIGHT = 0.999  # discriminator accuracy from which every image counts as classified
ALIKE = 0.1  # sample diversity, as a share of the reals', below which all samples look alike

REMEDY = "Lower --g_lr and --d_lr, or use --precision=float32."


def check_finite(rows: np.ndarray, names: tuple[str, ...], first_step: int) -> None:
    """Checks the metrics of some steps for values that are not finite.

    In float16 a gradient may overflow as long as its loss scale can still decrease, because
    such an update is skipped.

    Args:
      rows: the metrics, [steps, M].
      names: names of the M columns.
      first_step: number of steps done before the first row.

    Raises:
      NotFiniteError: naming the first such step and its metrics that are not finite.
    """
    bad = ~np.isfinite(rows)
    for network in "dg":
        if f"{network}_loss_scale" in names:
            scale = rows[:, names.index(f"{network}_loss_scale")]
            bad[:, names.index(f"{network}_grad_norm")] &= scale <= 1.0
    if bad.any():
        row = int(np.argmax(bad.any(1)))
        metrics = ", ".join(name for name, is_bad in zip(names, bad[row], strict=True) if is_bad)
        raise NotFiniteError(f"{metrics} not finite at step {first_step + row + 1}")


class CollapseDetector:
    """Detects a discriminator that is always right, and samples that all look alike.

    Both are normal for a while, so a sign counts only after it has lasted.
    """

    def __init__(self, images: int) -> None:
        """Starts without signs.

        Args:
          images: how long a sign must last, in images; 0 disables the detector.
        """
        self._images = images
        self._since: dict[str, int] = {}  # images seen when a sign appeared
        self._reported: set[str] = set()

    @property
    def has_signs(self) -> bool:
        """Whether there is a sign now, however long it has lasted."""
        return bool(self._since)

    def observe_accuracy(self, images: int, d_acc: float) -> str:
        """Returns a description of collapse, or "".

        Args:
          images: number of images seen.
          d_acc: accuracy of the discriminator, 0 to 1.
        """
        return self._observe(
            "the discriminator classifies every image correctly", d_acc >= ALWAYS_RIGHT, images
        )

    def observe_diversity(self, images: int, diversity: float) -> str:
        """Returns a description of collapse, or "".

        Args:
          images: number of images seen.
          diversity: diversity of the samples as a share of that of the reals.
        """
        return self._observe("the samples are all alike", diversity < ALIKE, images)

    def _observe(self, sign: str, present: bool, images: int) -> str:
        if not present:
            self._since.pop(sign, None)
            self._reported.discard(sign)
            return ""
        since = self._since.setdefault(sign, images)
        if not self._images or images - since < self._images or sign in self._reported:
            return ""
        self._reported.add(sign)
        return f"{sign}, since {since / 1000:g} kimg"


class CollapseAlarm:
    """Warns of collapse, and says whether the run stops because of it.

    Attributes:
      sign: the latest sign of collapse; "" without one.
      on_change: called with True at each sign, and with False while there is none.
    """

    def __init__(self, config: Config) -> None:
        self._detector = CollapseDetector(round(1000 * config.collapse_kimg))
        self._has_accuracy = OBJECTIVES[config.loss].classifies
        self._stop_on_collapse = config.stop_on_collapse
        self.sign = ""
        self.on_change: Callable[[bool], None] = lambda present: None

    @property
    def stops_run(self) -> bool:
        """Whether the run stops because of collapse."""
        return bool(self.sign) and self._stop_on_collapse

    def observe_accuracy(self, images: int, d_acc: float) -> None:
        """Takes the discriminator's accuracy after so many images into account."""
        if self._has_accuracy:
            self._warn(self._detector.observe_accuracy(images, d_acc))

    def observe_diversity(self, images: int, diversity: float) -> None:
        """Takes the samples' diversity, a share of the reals', into account."""
        self._warn(self._detector.observe_diversity(images, diversity))

    def _warn(self, sign: str) -> None:
        if sign:
            log.warning("This looks like collapse: %s.", sign)
            self.sign = sign
            self.on_change(True)
        elif not self._detector.has_signs:
            self.on_change(False)
