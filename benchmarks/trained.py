"""The trainer's own step as a case."""

from typing import Any

import numpy as np

from benchmarks.harness import Work


def images(count: int, side: int, channels: int):
    """Random images with labels of ten classes, as a data set."""
    from trainer.data.images import ImageSet

    draw = np.random.default_rng(0)
    shape = (count, side, side, channels)
    return ImageSet(
        draw.integers(0, 256, shape, np.uint8),
        draw.integers(0, 10, count, np.int32),
        tuple(map(str, range(10))),
    )


def step(*, side: int = 28, channels: int = 1, count: int = 10_000, **settings: Any) -> Work:
    """Training steps of a recipe, many per call, as the trainer makes them."""
    from trainer import recipes, runtime, state
    from trainer import step as step_module
    from trainer.advance import make_advance
    from trainer.data import pipeline

    config = recipes.resolve(settings)
    data = images(count, side, channels)
    devices = runtime.start(config)
    with devices.scope():
        variables = state.create(config, data.shape, devices.precision)
    batches = devices.distribute(
        lambda replicas: pipeline.batches(
            data,
            seed=config.seed,
            first_step=0,
            batch_size=config.batch_size,
            batches_per_step=step_module.real_batches_per_step(config),
            replicas=replicas,
            num_replicas=devices.num_replicas,
        )
    )
    advance = make_advance(config, devices, variables, data.shape.classes, batches)
    return Work(advance, config.batch_size, {"batch": config.batch_size})
