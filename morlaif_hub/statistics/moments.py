"""Mean and spread of numbers that come bit by bit."""

from dataclasses import dataclass

from morlaif_hub.statistics.arrays import FloatArray


@dataclass
class RunningMoments:
    """The moments of all numbers so far, joined as in Chan, Golub, LeVeque (1983).

    Attributes:
        count: How many there were.
        mean: Of all.
        squares: The sum of their squared distances from the mean.

    Example:
        >>> import numpy as np
        >>> moments = RunningMoments()
        >>> moments.update(np.array([1.0, 2.0]))
        >>> moments.update(np.array([3.0]))
        >>> moments.mean, moments.deviation
        (2.0, 1.0)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, numbers: FloatArray) -> None:
        """Take some more into account, any shape, at least one."""
        before, self.count = self.count, self.count + numbers.size
        shift, share = float(numbers.mean()) - self.mean, numbers.size / self.count
        self.squares += float(((numbers - numbers.mean()) ** 2).sum()) + shift**2 * before * share
        self.mean += shift * share

    @property
    def deviation(self) -> float:
        """The standard deviation, of n - 1; 0 where all have been the same."""
        variance = self.squares / max(self.count - 1, 1)
        return float(variance**0.5) if variance > 1e-12 * self.mean**2 else 0.0
