"""Counts the starts of a run, so that a run that cannot go on is not started for ever."""

import dataclasses
import json
from pathlib import Path

from trainer.errors import NoProgressError
from trainer.files.atomic import write_text

NAME = "starts.json"
# Counts the starts that have not reached the run; see storage/attempts.py.
ATTEMPTS = "attempts.json"
ATTEMPTS_OF_OTHERS = "attempts-"  # prefix of the files of the workers that are not the chief
# Consecutive starts without progress after which a start fails: a cluster would retry for ever.
MAX_STARTS = 20


def attempts_name(worker: int) -> str:
    """Returns the name of the file that counts the attempts of a worker."""
    return f"{ATTEMPTS_OF_OTHERS}{worker}.json" if worker else ATTEMPTS


@dataclasses.dataclass(frozen=True)
class Starts:
    """The starts of a run.

    Attributes:
      starts: number of starts that have reached the run.
      step: step from which the latest of them began; -1 without any.
      in_a_row: number of consecutive starts without progress beyond `step`.
    """

    starts: int = 0
    step: int = -1
    in_a_row: int = 0

    @classmethod
    def parse(cls, text: str | bytes) -> "Starts":
        """Returns the content of the file; without any starts if it is damaged."""
        try:
            read = json.loads(text)
            return cls(int(read["starts"]), int(read["step"]), int(read["in_a_row"]))
        except (ValueError, TypeError, KeyError):
            return cls()

    @classmethod
    def read(cls, folder: Path) -> "Starts":
        """Returns the starts of the run in a run directory."""
        try:
            return cls.parse((folder / NAME).read_bytes())
        except OSError:
            return cls()

    def write(self, folder: Path) -> None:
        """Writes the file in a run directory.

        Raises:
          OSError: if it cannot be written.
        """
        write_text(folder / NAME, json.dumps(dataclasses.asdict(self)) + "\n")

    def reached(self, step: int, attempts: int, where: object) -> "Starts":
        """Returns the starts with a further one, which begins from `step`.

        Args:
          step: number of finished steps.
          attempts: number of starts since the latest one that reached the run, with this one.
          where: the run directory, for the error.

        Raises:
          NoProgressError: if it is one too many without progress.
        """
        in_a_row = self.in_a_row + attempts if self.step == step else 1
        new = Starts(self.starts + 1, step, in_a_row)
        new.check(0, where)
        return new

    def at(self, step: int) -> "Starts":
        """Returns the starts of a run whose newest checkpoint is of `step`."""
        return dataclasses.replace(self, step=step, in_a_row=0) if step > self.step else self

    def allows(self, attempts: int) -> bool:
        """Returns whether so many starts that did not reach the run are within the limit."""
        return self.in_a_row + attempts <= MAX_STARTS

    def check(self, attempts: int, where: object) -> None:
        """Checks the limit, with so many starts that did not reach the run.

        Raises:
          NoProgressError: if there were more than MAX_STARTS without progress.
        """
        if not self.allows(attempts):
            beyond = f"beyond step {self.step}" if self.step >= 0 else "before the first step"
            raise NoProgressError(
                f"{MAX_STARTS} consecutive starts made no progress {beyond}. See the logs of the "
                f"earlier starts for the reason, then remove {NAME} and attempts*.json from "
                f"{where} to try again."
            )
