"""Measures cases alternately, each in a separate process, and compares them as ratios.

The speed of a machine varies more from minute to minute than most changes of the code affect it,
so results are compared only within the rounds of one call.
"""

import argparse
import dataclasses
import importlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from trainer.machine import imports

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Work:
    """The work that a case measures.

    Attributes:
      call: function that repeats the work a given number of times.
      units: number of units in one repetition, for example the images of a batch.
      facts: further results by name, read after the last round.
    """

    call: Callable[[int], Any]
    units: float = 1.0
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Case:
    """A case, which is measured in a separate process.

    Attributes:
      name: name in the table.
      make: "module:function" that returns the case's Work.
      options: keyword arguments of the function.
      environment: environment variables to set before the module is imported.
    """

    name: str
    make: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The result of a case.

    Attributes:
      rates: units per second, one per round.
      facts: facts of the case's Work, and its peak memory in GiB.
      error: why the case could not be measured, or "".
    """

    rates: tuple[float, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""

    @property
    def rate(self) -> float:
        """Median of the rates in units per second, or NaN without any."""
        return statistics.median(self.rates) if self.rates else float("nan")

    def over(self, other: "Measured") -> float:
        """Returns the median over rounds of the ratio of this rate to another's."""
        ratios = [a / b for a, b in zip(self.rates, other.rates, strict=True)]
        return statistics.median(ratios) if ratios else float("nan")


def measure(cases: Sequence[Case], *, rounds: int = 7, secs: float = 2.0) -> dict[str, Measured]:
    """Measures cases alternately, in `rounds` rounds of about `secs` seconds per case."""
    context = multiprocessing.get_context("spawn")
    pipes, failed = {}, {}
    for case in cases:
        pipe, far_end = context.Pipe()
        context.Process(target=_serve, args=(far_end, case), daemon=True).start()
        far_end.close()
        pipes[case.name] = pipe
        # Wait for each case, so that no two compile at the same time.
        reply = _receive(pipe)
        if isinstance(reply, str):
            failed[case.name] = Measured(error=reply)
            del pipes[case.name]
    times: dict[str, int] = {}
    for name, pipe in pipes.items():
        times[name] = _times(pipe, secs)
    rates: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(times[name])
            taken, units = _receive(pipe)
            rates[name].append(times[name] * units / taken)
    measured = {}
    for name, pipe in pipes.items():
        pipe.send(0)
        measured[name] = Measured(tuple(rates[name]), _receive(pipe))
    return {case.name: (measured | failed)[case.name] for case in cases}


def alone(function: str, **options: Any) -> Any:
    """Calls "module:function" in a separate process and returns its result.

    Raises:
      RuntimeError: if the process failed.
    """
    context = multiprocessing.get_context("spawn")
    pipe, far_end = context.Pipe()
    process = context.Process(target=_call, args=(far_end, function, options), daemon=True)
    process.start()
    far_end.close()
    reply = _receive(pipe)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function}: {reply}")
    return reply


def _call(pipe: Connection, function: str, options: Mapping[str, Any]) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        pipe.send(_named(function, options))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        raise


def _named(function: str, options: Mapping[str, Any]) -> Any:
    """Calls "module:function" and suppresses TensorFlow's start-up messages."""
    module, _, name = function.partition(":")
    with imports.quiet():
        return getattr(importlib.import_module(module), name)(**options)


def ratios(
    first: Callable[[int], Any], second: Callable[[int], Any], *, rounds: int, secs: float
) -> list[float]:
    """Returns the time of `first` over that of `second` in each round of about `secs` seconds."""
    second(1), first(1)  # compiles both
    count, taken = 1, timed(second, 1)
    while taken < 0.25 * secs:
        count *= 4
        taken = timed(second, count)
    count = max(1, round(count * secs / taken))
    return [timed(first, count) / timed(second, count) for _ in range(rounds)]


def timed(call: Callable[..., Any], *args: Any) -> float:
    """Returns the seconds that a call takes."""
    began = time.perf_counter()
    call(*args)
    return time.perf_counter() - began


def memory_gib(kind: str = "VmHWM") -> float:
    """Returns the process's memory in GiB: VmHWM is the peak, VmRSS the current value."""
    with open("/proc/self/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields[kind].removesuffix(" kB\n")) / 2**20


def _times(pipe: Connection, secs: float) -> int:
    """Returns how many repetitions of a case take about `secs` seconds."""
    count = 1
    while True:
        pipe.send(count)
        taken, _ = _receive(pipe)
        if taken > 0.25 * secs:
            return max(1, round(count * secs / taken))
        count *= 4


def _receive(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return "the process died"


def _serve(pipe: Connection, case: Case) -> None:
    """Creates the case's work and repeats it by each count received, until the count is 0."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.update(case.environment)
    try:
        work = _named(case.make, case.options)
        work.call(1)  # compiles
    except ImportError as error:
        pipe.send(f"{error.name} is not installed")
        return
    pipe.send(None)
    while count := pipe.recv():
        began = time.perf_counter()
        work.call(count)
        pipe.send((time.perf_counter() - began, work.units))
    pipe.send({**work.facts, "peak_gib": memory_gib()})


def machine() -> dict[str, Any]:
    """Returns a description of the machine."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        lines = [line.partition(":") for line in file]
    known = {key.strip(): value.strip() for key, _, value in lines}
    return {
        "processor": known.get("model name", "?"),
        "cores": len(os.sched_getaffinity(0)),
        "avx512_bf16": "avx512_bf16" in known.get("flags", ""),
        "load_before": round(os.getloadavg()[0], 2),
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }


def parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the arguments that all benchmarks share."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--rounds", type=int, default=7, help="rounds, in each of which every case is measured once"
    )
    made.add_argument("--secs", type=float, default=2.0, help="seconds per case and round")
    return made


def report(name: str, rows: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Prints a table and writes it to results/NAME.json with a description of the machine."""
    print_table(rows)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    result = {"machine": machine(), **facts, "rows": [dict(row) for row in rows]}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\n{path}")


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as a table with a header; numbers have three significant digits."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns] + [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        first, *others = (
            text.ljust(width) if k == 0 else text.rjust(width)
            for k, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
