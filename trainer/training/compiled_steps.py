"""Compiles many training steps into one function."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.errors import NotFiniteError, UsageError
from trainer.machine.replicas import Replicas
from trainer.training.divergence import check_finite
from trainer.training.state import TrainState
from trainer.training.step import Step, metric_names
from trainer.training.utilisation import UtilisationMeter, flops

RunSteps = Callable[[int], np.ndarray]


def compile_steps(
    config: Config,
    replicas: Replicas,
    state: TrainState,
    classes: int,
    batch: Callable[[tf.Tensor], Any],
    meter: UtilisationMeter | None = None,
) -> RunSteps:
    """Compiles the training step inside a loop on the devices.

    Args:
      config: the configuration of the run.
      replicas: the replicas that train.
      state: the state that training changes.
      classes: number of classes of the data set.
      batch: returns the next batches of reals of the replicas, given the step's index in
        the call.
      meter: receives the floating-point operations of a step.

    Returns:
      A function that trains the given number of steps and returns their metrics, [steps, M]
      float32.  It raises a NotFiniteError if a metric, or a weight after the last step, is
      not finite.
    """
    step = Step(config, state, classes, replicas.num_replicas)
    names = metric_names(replicas.precision, config.augment)
    networks = state.networks()
    meter = meter or UtilisationMeter(replicas.device_names, replicas.precision)

    def one_more(k: tf.Tensor, rows: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        metrics = replicas.run_and_sum(step, *batch(k))
        rows = rows.write(k, metrics)
        if state.augment is not None:
            share = metrics[names.index("d_real_acc")]
            state.augment.observe(share, state.images // config.batch_size)
        meter.flops = flops(tf.compat.v1.get_default_graph())
        state.images.assign_add(config.batch_size)
        return k + 1, rows

    # AutoGraph would rewrite every function of the step, which takes longer than tracing them.
    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)], autograph=False)
    def run_steps(steps: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        rows = tf.TensorArray(tf.float32, size=steps, element_shape=[len(names)])
        _, rows = tf.while_loop(lambda k, _: k < steps, one_more, (tf.constant(0), rows))
        # Reading all weights once per call is cheap, because a call has many steps.
        return rows.stack(), [_is_finite(network.variables) for network in networks.values()]

    def checked(steps: int) -> np.ndarray:
        """Trains `steps` steps and returns their metrics."""
        first_step = state.steps_done(config.batch_size)
        at_once = config.batch_per_replica or config.batch_size // replicas.num_replicas
        with replicas.converted_peer_errors(), _memory_named(at_once):
            rows, finite = run_steps(tf.constant(steps, tf.int32))
        check_finite(rows.numpy(), names, first_step)
        bad = [name for name, is_finite in zip(networks, finite, strict=True) if not is_finite]
        if bad:
            raise NotFiniteError(
                f"Weights of {', '.join(bad)} not finite in steps {first_step + 1} to "
                f"{first_step + steps}"
            )
        return rows.numpy()

    return checked


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


def _is_finite(variables: Iterable[keras.Variable]) -> tf.Tensor:
    floats = [variable.value for variable in variables if variable.dtype.startswith("float")]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in floats])
