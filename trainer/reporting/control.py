"""How a process that trains is controlled."""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from trainer.config import Config
from trainer.errors import ExitCode, SignalledError, StoppedError
from trainer.reporting.console import Console
from trainer.reporting.phases import Phases
from trainer.reporting.prometheus import Telemetry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """How a process is controlled.

    Attributes:
      terminal: the console that shows the progress.
      stop_requested: returns whether to save a checkpoint and stop.
      secs_left: returns the seconds until the process is killed.
      clock: returns monotonic seconds, for --max_hours.
      worker_index: index of this process in --workers; None to find it in the environment.
      phases: what the process is doing.
      telemetry: the Prometheus endpoint; None for none.
    """

    terminal: Console
    stop_requested: Callable[[], bool] = lambda: False
    secs_left: Callable[[], float] = lambda: math.inf
    clock: Callable[[], float] = time.monotonic
    worker_index: int | None = None
    phases: Phases = dataclasses.field(default_factory=Phases)
    telemetry: Telemetry | None = None

    def enter(self, phase: str) -> None:
        """Enters a phase of a start, in which there is nothing to save yet.

        Raises:
          SignalledError: if a stop was requested.
        """
        self.check_stop()
        self.phases.enter(phase)

    def check_stop(self) -> None:
        """Ends a start if a stop was requested.

        Raises:
          SignalledError: if so.
        """
        if self.stop_requested():
            raise SignalledError(
                f"Stopped on request while {self.phases.name}, before there was anything to save. "
                "Run the same command again.",
                getattr(self.stop_requested, "exit_code", ExitCode.TERMINATED),
            )

    @contextlib.contextmanager
    def served(self, config: Config, worker: int) -> Iterator["Control"]:
        """Yields this control with the metrics endpoint of the run, which is open in the block.

        Raises:
          UsageError: if the endpoint cannot be opened.
        """
        labels = {"run": config.run_dir, "worker": str(worker)}
        telemetry = Telemetry(config.metrics_port, labels, config.metrics_address, self.phases)
        try:
            yield dataclasses.replace(self, telemetry=telemetry)
        finally:
            telemetry.close_endpoint()

    def report(self, share: float, what: str) -> None:
        """Shows the progress of reading the data.

        Args:
          share: the finished share, from 0 to 1.
          what: description of what is done.

        Raises:
          SignalledError: if a stop was requested.
        """
        self.enter("downloading" if what.startswith("Downloading") else "reading")
        self.terminal.bar(share, what)


@contextlib.contextmanager
def saved_at_interrupt() -> Iterator[Callable[[], bool]]:
    """Makes the first Ctrl-C inside the block a stop request; a second one interrupts at once.

    Does nothing outside of the main thread, or if the program handles SIGINT itself.

    Yields:
      A function that returns whether a stop was requested.

    Raises:
      KeyboardInterrupt: at the end of the block, if a stop was requested.
    """
    usual = signal.default_int_handler
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not usual:
        yield lambda: False
        return
    requested = threading.Event()

    def request(number: int, frame: FrameType | None) -> None:
        requested.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, request)
    ending = ""
    try:
        yield requested.is_set
    except (StoppedError, SignalledError) as error:
        if not requested.is_set():
            raise
        ending = str(error)
    finally:
        signal.signal(signal.SIGINT, usual)
    if requested.is_set():
        raise KeyboardInterrupt(ending)
