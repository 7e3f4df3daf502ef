"""What is watched while a run trains: values that are not finite, and signs of collapse."""

import numpy as np

from trainer.errors import NotFiniteError

PINNED = 0.999  # share of images right, from which the discriminator counts as always right
ALIKE = 0.1  # samples that vary by less than this share of what reals do are all alike

REMEDY = "Lower --g_lr and --d_lr, or take --precision=float32."


def check_finite(rows: np.ndarray, names: tuple[str, ...], first_step: int) -> None:
    """Looks for values that are not finite.

    In float16 a gradient may overflow as long as its loss scale can still fall: such an
    update is skipped.

    Args:
      rows: the metrics of some steps, [steps, M].
      names: of the columns.
      first_step: steps done before them.

    Raises:
      NotFiniteError: naming the first such step and what was not finite in it.
    """
    bad = ~np.isfinite(rows)
    for network in "dg":
        if f"{network}_loss_scale" in names:
            scale = rows[:, names.index(f"{network}_loss_scale")]
            bad[:, names.index(f"{network}_grad_norm")] &= scale <= 1.0
    if bad.any():
        row = int(np.argmax(bad.any(1)))
        what = ", ".join(name for name, is_bad in zip(names, bad[row], strict=True) if is_bad)
        raise NotFiniteError(f"{what} not finite at step {first_step + row + 1}")


class CollapseWatch:
    """Notices when the discriminator is always right, or the samples are all alike.

    Both are normal for a while, so they count once they have lasted.
    """

    def __init__(self, images: int) -> None:
        """Starts to watch.

        Args:
          images: how long a sign must last, in images; 0: it never counts.
        """
        self._images = images
        self._since: dict[str, int] = {}  # images seen when a sign came up
        self._said: set[str] = set()

    def judged(self, images: int, d_acc: float) -> str:
        """Takes in the discriminator's accuracy up to so many images; returns a warning or ""."""
        return self._sign("the discriminator is right on every image", d_acc >= PINNED, images)

    def drawn(self, images: int, diversity: float) -> str:
        """Takes in how much samples vary, as a share of reals; returns a warning or ""."""
        return self._sign("the samples are all alike", diversity < ALIKE, images)

    def _sign(self, what: str, there: bool, images: int) -> str:
        if not there:
            self._since.pop(what, None)
            self._said.discard(what)
            return ""
        since = self._since.setdefault(what, images)
        if not self._images or images - since < self._images or what in self._said:
            return ""
        self._said.add(what)
        return f"{what}, since {since / 1000:g} kimg"
