"""Mean and covariance of features, accumulated batch by batch."""

import numpy as np

ROWS = 4096  # features added at once; their copy in float64 is 64 MiB at 2,048 dimensions


class Moments:
    """Mean and covariance of a set of features [N, D], in float64.

    Attributes:
      count: number of features added.
      mean: [D].
      scatter: [D, D], sum of the outer products of the deviations from the mean.
    """

    def __init__(self, size: int) -> None:
        """Creates the moments of an empty set of features of `size` dimensions."""
        self.count = 0
        self.mean = np.zeros(size)
        self.scatter = np.zeros((size, size))

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """Returns the moments of features [N, D]."""
        moments = cls(features.shape[1])
        for start in range(0, len(features), ROWS):
            moments.add(features[start : start + ROWS])
        return moments

    def add(self, features: np.ndarray) -> None:
        """Adds features [N, D].

        The mean of a batch is subtracted before products are computed, and batches are
        combined as by Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for
        computing sample variances", 1979).  Features far from zero therefore lose no
        precision.
        """
        added = len(features)
        if not added:
            return
        batch = np.asarray(features, np.float64)
        mean = batch.mean(0)
        centred = batch - mean
        step = mean - self.mean
        total = self.count + added
        self.scatter += centred.T @ centred + np.outer(step, step) * (self.count * added / total)
        self.mean = self.mean + step * (added / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance [D, D].

        Raises:
          ValueError: if fewer than two features were added.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs 2 or more features, not {self.count}")
        return self.scatter / (self.count - 1)
