"""The trainer's training step as a case, complete and with parts removed."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.harness import Work


def images(count: int, side: int, channels: int) -> Any:
    """Returns an ImageSet of random images with labels of ten classes."""
    from trainer.data.images import ImageSet

    draw = np.random.default_rng(0)
    shape = (count, side, side, channels)
    return ImageSet(
        draw.integers(0, 256, shape, np.uint8),
        draw.integers(0, 10, count, np.int32),
        tuple(map(str, range(10))),
    )


def shape_of(recipe: str) -> dict[str, Any]:
    """Returns the image shape that a recipe is measured on: that of CIFAR-10 or of MNIST."""
    return dict(side=32, channels=3) if recipe == "dcgan-studiogan" else dict(side=28, channels=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a compiled training step."""

    config: Any
    data: Any
    devices: Any
    variables: Any

    def batches(self) -> Iterator[Any]:
        """Returns the batches of real images, made as the trainer makes them."""
        from trainer.data import pipeline
        from trainer.training import step

        plan = pipeline.BatchPlan(
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            batches_per_step=step.real_batches_per_step(self.config),
        )
        return self.devices.make_iterator(
            lambda replicas: pipeline.batches(
                self.data, plan, replicas=replicas, num_replicas=self.devices.num_replicas
            )
        )

    def advance(self, batches: Iterator[Any]) -> Any:
        """Returns the function that runs compiled steps on these batches, as in the trainer."""
        from trainer.training.compiled_steps import compile_steps
        from trainer.training.data_wait import DataWaitTimer
        from trainer.training.feed import Feed

        watch = DataWaitTimer()
        feed = Feed(
            self.data.shape.classes, lambda number: watch.timed(lambda: next(batches), number)
        )
        return compile_steps(
            self.config, self.devices, self.variables, feed, xla=self.config.xla == "on"
        )

    def work(self, call: Callable[[int], Any]) -> Work:
        """Returns a function of the number of steps as work to measure."""
        return Work(call, self.config.batch_size, {"batch": self.config.batch_size})


def parts(
    *,
    side: int = 28,
    channels: int = 1,
    count: int = 10_000,
    on_gpus: bool | None = None,
    **settings: Any,
) -> Parts:
    """Returns the parts of a recipe's training step on random images.

    Args:
      side: height and width of the images in pixels.
      channels: channels of the images.
      count: number of images.
      on_gpus: whether the step is built as for GPUs; None if the devices decide.
      **settings: settings of the configuration.
    """
    from trainer import recipes
    from trainer.machine import replicas
    from trainer.training import state

    config = recipes.resolve(settings)
    data = images(count, side, channels)
    small = recipes.get(config.networks).fully_connected
    devices = replicas.create_replicas(config, small_operations=small)
    on_gpus = devices.is_on_gpus if on_gpus is None else on_gpus
    config = config.with_spans_in_kimg(len(data))
    with devices.scope():
        variables = state.create_state(config, data.shape, devices.precision, on_gpus=on_gpus)
    return Parts(config, data, devices, variables)


def step(**options: Any) -> Work:
    """Returns training steps of a recipe, many per call, as the trainer runs them."""
    made = parts(**options)
    return made.work(made.advance(made.batches()))


def bare_step(**options: Any) -> Work:
    """Returns the same updates without metrics and without checks for divergence."""
    import tensorflow as tf

    from trainer.training.position import Start, count_steps
    from trainer.training.step import Step

    made = parts(**options)
    batches = made.batches()
    update = Step(made.config, made.variables, made.data.shape.classes, made.devices.num_replicas)

    made.devices.run(made.variables.load)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def advance(steps: tf.Tensor) -> None:
        start = Start.read(made.variables)
        for k in tf.range(steps):
            position = start.after(made.config, k)
            made.devices.strategy.run(update, args=(*next(batches), position))
        count_steps(made.config, made.variables, steps)

    return made.work(lambda steps: advance(tf.constant(steps)))


class SameBatch:
    """An iterator that repeats one batch in place of the input pipeline, on one replica."""

    def __init__(self, batches: Iterator[Any]) -> None:
        import tensorflow as tf

        # Variables are used because TensorFlow would compute constant expressions only once.
        self._batch = [tf.Variable(part, trainable=False) for part in next(batches)]

    def __iter__(self) -> "SameBatch":
        return self

    def __next__(self) -> list[Any]:
        return [variable.read_value() for variable in self._batch]
