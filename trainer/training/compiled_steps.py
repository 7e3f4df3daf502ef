"""Compiles many training steps into one function."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.errors import NotFiniteError, UsageError
from trainer.machine.replicas import Replicas
from trainer.training.buffer import Buffers
from trainer.training.divergence import check_finite
from trainer.training.feed import Feed
from trainer.training.position import Position, Start, count_steps
from trainer.training.state import TrainState
from trainer.training.step import RawMetrics, Step, metric_names
from trainer.training.utilisation import UtilisationMeter, flops

RunSteps = Callable[[int], np.ndarray]


def compile_steps(
    config: Config,
    replicas: Replicas,
    state: TrainState,
    feed: Feed,
    meter: UtilisationMeter | None = None,
    *,
    xla: bool = False,
) -> RunSteps:
    """Compiles the training step inside a loop on the devices.

    Args:
      config: the configuration of the run.
      replicas: the replicas that train.
      state: the state that training changes.
      feed: what the steps take their images from.
      meter: receives the floating-point operations of a step.
      xla: whether XLA compiles the steps of one replica, each into one program.

    Returns:
      A function that trains the given number of steps and returns their metrics, [steps, M]
      float32.  It raises a NotFiniteError if a metric, or a weight after the last step, is
      not finite.
    """
    # A program of XLA cannot exchange values with other replicas.
    whole = xla and replicas.num_replicas == 1
    step = Step(config, state, feed.classes, replicas.num_replicas, whole)
    names = metric_names(config, replicas.precision)
    raw = RawMetrics(config, names, replicas.num_replicas)
    meter = meter or UtilisationMeter(replicas.device_names, replicas.precision)

    def on_replica(received: tf.Tensor, labels: tf.Tensor, position: Position) -> tf.Tensor:
        return step(feed.read(received), labels, position)

    def one_step(k: tf.Tensor, position: Position) -> tf.Tensor:
        sums = replicas.run_and_sum(on_replica, *feed.take(k), position)
        if state.augment is not None:
            verdicts = tf.add_n([sums[column] for column in raw.columns["d_real_acc"]])
            share = 0.5 + 0.5 * verdicts / (config.batch_size * config.d_steps)
            state.augment.observe(share, position.images // config.batch_size)
        meter.flops = flops(tf.compat.v1.get_default_graph())
        return sums

    # AutoGraph would rewrite every function of the step, which takes longer than tracing them.
    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)], autograph=False)
    def run_steps(steps: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns the sums of the steps, and for each network whether it is finite after them."""
        replicas.run(state.load)
        start = Start.read(state)

        def one_more(k: tf.Tensor, rows: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            rows = rows.write(k, one_step(k, start.after(config, k)))
            return k + 1, rows

        rows = tf.TensorArray(tf.float32, size=steps, element_shape=[raw.size])
        _, rows = tf.while_loop(lambda k, _: k < steps, one_more, (tf.constant(0), rows))
        count_steps(config, state, steps)
        replicas.run(state.store)
        # Reading all weights once per call is cheap, because a call has many steps.
        finite = [_is_finite(buffers) for buffers in state.buffers_by_network().values()]
        return rows.stack(), finite

    guarded = feed.guarded(run_steps)
    return lambda steps: _run_checked(guarded, steps, raw, replicas, state)


def _run_checked(
    run_steps: Callable[..., Any],
    steps: int,
    raw: RawMetrics,
    replicas: Replicas,
    state: TrainState,
) -> np.ndarray:
    """Trains `steps` steps and returns their metrics.

    Raises:
      NotFiniteError: if a metric, or a weight after the last step, is not finite.
      PeerLostError: if another worker was lost.
      UsageError: if the memory of the devices is too small.
    """
    config = raw.config
    first_step = state.steps_done(config.batch_size)
    at_once = config.batch_per_replica or config.batch_size // replicas.num_replicas
    with replicas.converted_peer_errors(), _memory_named(at_once):
        sums, finite = run_steps(tf.constant(steps, tf.int32))
    rows = raw.metrics(sums.numpy())
    check_finite(rows, raw.names, first_step)
    networks = state.buffers_by_network()
    bad = [name for name, is_finite in zip(networks, finite, strict=True) if not is_finite]
    if bad:
        raise NotFiniteError(
            f"Weights of {', '.join(bad)} not finite in steps {first_step + 1} to "
            f"{first_step + steps}"
        )
    return rows


@contextlib.contextmanager
def _memory_named(at_once: int) -> Iterator[None]:
    """Converts an out-of-memory error into an error for the user.

    Args:
      at_once: images that a device processes at once.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise UsageError(
            f"The device's memory is too small for {at_once} images at once. Lower "
            "--batch_per_replica, which keeps the result, or --batch_size."
        ) from error


def _is_finite(buffers: Iterable[Buffers]) -> tf.Tensor:
    values = [value for buffer in buffers for value in buffer.values()]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values])
