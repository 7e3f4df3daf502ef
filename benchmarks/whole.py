"""Times the parts of the whole trainer, and runs it as a case that pauses between rounds."""

import collections
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from benchmarks.harness import Work
from benchmarks.trained import images

ACTIONS = ("samples", "evaluations", "saves")  # in the order of the trainer's loop
Seconds = dict[str, list[float]]  # seconds of each call, by kind of work


def train(
    seconds: Seconds,
    *,
    every_kimg: float,
    at: Callable[[int], None] = lambda step: None,
    side: int = 28,
    channels: int = 1,
    count: int = 10_000,
    **settings: Any,
) -> None:
    """Trains a run to its end as the command does, and records how long its parts take.

    Args:
      seconds: filled with the seconds of each call.
      every_kimg: interval of calls of `at`, which come after all other periodic work.
      at: function that is called with the number of steps done.
      side, channels, count: shape and number of the random images.
      settings: settings of the run, including run_dir.
    """
    from trainer import recipes
    from trainer import train as trainer
    from trainer.reporting.console import Console, log_to
    from trainer.training import loop

    train_steps = loop.train_steps

    def timed_function(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(first: Any, *others: Any) -> Any:
            began = time.perf_counter()
            result = call(first, *others)
            # A call of the compiled step for 0 steps only compiles it.
            is_compilation = name == "steps" and first == 0
            seconds["compile" if is_compilation else name].append(time.perf_counter() - began)
            return result

        return timed_call

    def timed_train_steps(plan: loop.LoopPlan, functions: loop.LoopFunctions) -> int:
        due = [
            loop.Periodic(p.every_images, timed_function(name, p.action))
            for name, p in zip(ACTIONS, plan.periodic, strict=True)
        ]
        due.append(loop.Periodic(round(1000 * every_kimg), at))
        return train_steps(
            dataclasses.replace(plan, periodic=due),
            dataclasses.replace(
                functions,
                run_steps=timed_function("steps", functions.run_steps),
                observe=timed_function("summaries", functions.observe),
            ),
        )

    config = recipes.resolve(settings)
    terminal = Console(open(os.devnull, "w", encoding="utf-8"))
    log_to(terminal)
    with mock.patch.object(loop, "train_steps", timed_train_steps):
        data = images(count, side, channels)
        trainer.train(config, data, trainer.Control(terminal=terminal))


def case(*, every_kimg: float, **options: Any) -> Work:
    """Returns the trainer at its default intervals as work of `every_kimg` per repetition.

    The facts are the seconds of each call of its parts, without those of the first round.
    """
    import trainer.train  # noqa: F401  (imported while TensorFlow's messages are off)

    seconds: Seconds = collections.defaultdict(list)
    resume: queue.Queue[None] = queue.Queue()
    is_held: queue.Queue[bool] = queue.Queue()

    def hold(step: int) -> None:
        is_held.put(True)
        resume.get()

    def run() -> None:
        try:
            train(seconds, every_kimg=every_kimg, at=hold, length="1000000 kimg", **options)
        finally:
            is_held.put(False)

    def wait_until_held() -> None:
        if not is_held.get():
            raise RuntimeError("the run has ended")

    def call(times: int) -> None:
        if not thread.is_alive():
            thread.start()
            wait_until_held()
            seconds.clear()
            return
        for _ in range(times):
            began = time.perf_counter()
            resume.put(None)
            wait_until_held()
            seconds["wall"].append(time.perf_counter() - began)

    thread = threading.Thread(target=run, daemon=True)
    return Work(call, 1000 * every_kimg, seconds)
