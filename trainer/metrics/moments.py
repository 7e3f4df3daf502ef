"""Mean and covariance of features, gathered batch by batch."""

import numpy as np

ROWS = 4096  # features taken in at a time: in float64 a copy of 64 MiB at 2,048 dimensions


class Moments:
    """Mean and covariance of a set of features [N, D], in float64.

    Attributes:
      count: features taken in.
      mean: [D].
      scatter: [D, D], the sum of the products of deviations from the mean.
    """

    def __init__(self, size: int) -> None:
        """Starts with no features of `size` dimensions."""
        self.count = 0
        self.mean = np.zeros(size)
        self.scatter = np.zeros((size, size))

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """The moments of features [N, D]."""
        moments = cls(features.shape[1])
        for start in range(0, len(features), ROWS):
            moments.add(features[start : start + ROWS])
        return moments

    def add(self, features: np.ndarray) -> None:
        """Takes in features [N, D].

        A batch's own mean is taken off before products are formed, and batches are joined
        as Chan, Golub and LeVeque do ("Updating formulae and a pairwise algorithm for
        computing sample variances", 1979): features far from zero lose no digits.
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
          ValueError: of fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs 2 features or more, not {self.count}")
        return self.scatter / (self.count - 1)
