"""How a process that trains is controlled."""

import dataclasses
import math
import time
from collections.abc import Callable

from trainer.reporting.console import Console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """How a process is controlled.

    Attributes:
      terminal: the console that shows the progress.
      stop_requested: returns whether to save a checkpoint and stop.
      secs_left: returns the seconds until the process is killed.
      clock: returns monotonic seconds, for --max_hours.
      worker_index: index of this process in --workers; None to find it in the environment.
    """

    terminal: Console
    stop_requested: Callable[[], bool] = lambda: False
    secs_left: Callable[[], float] = lambda: math.inf
    clock: Callable[[], float] = time.monotonic
    worker_index: int | None = None
