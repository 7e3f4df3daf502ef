"""Updates a network: sums its gradients over replicas and applies them.

In float16, gradients that overflow are normal: they are scaled, and an update that is not finite is
skipped.  In the other formats such an update is divergence, which `check_finite` finds.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.machine import program, replicas
from trainer.machine.devices import on_host
from trainer.models import kernels
from trainer.models.spectral_norms import Normalized, SpectralNorms, has_spectral_norms
from trainer.training.buffer import Buffers, assign_own
from trainer.training.optimizers import Optimizer, Update

FIRST_SCALE = 2.0**15
GROWTH_STEPS = 2000  # consecutive finite updates after which the scale doubles


@dataclasses.dataclass(frozen=True, eq=False)
class LossScale:
    """A loss scale that halves when gradients overflow and doubles after GROWTH_STEPS updates.

    Micikevicius et al., arXiv:1710.03740, section 3.2.
    """

    value: tf.Variable
    finite_steps: tf.Variable

    @classmethod
    def create(cls) -> "LossScale":
        """Creates its variables.  Call it inside the scope of the replicas."""
        return cls(
            tf.Variable(FIRST_SCALE, trainable=False, name="loss_scale"),
            tf.Variable(0, dtype=tf.int64, trainable=False, name="finite_steps"),
        )

    def after(self, finite: tf.Tensor) -> None:
        """Adjusts the scale after an update.

        Args:
          finite: whether the update was finite, a bool scalar that is equal on every replica.
        """
        steps = tf.where(finite, self.finite_steps + 1, 0)
        grows = steps >= GROWTH_STEPS
        grown = tf.where(grows, 2.0 * self.value, self.value)
        assign_own(self.value, tf.where(finite, grown, tf.maximum(1.0, 0.5 * self.value)))
        assign_own(self.finite_steps, tf.where(grows, tf.zeros_like(steps), steps))


@dataclasses.dataclass(frozen=True, eq=False)
class Updater:
    """A network with its optimizer and, in float16, its loss scale.

    While steps run, the values of the variables are in the buffers (`load`, `store`).

    Attributes:
      network: the network whose trainable variables are updated.
      optimizer: its optimizer, which is built.
      scale: the loss scale; None in other formats than float16.
      clip: weights are clipped to [-clip, clip]; 0 disables clipping.
      weights: the trainable variables.
      statistics: the other float32 variables, such as the moving averages of batch norms.
      slots: the slots of the optimizer by kind, in buffers like those of the weights.
    """

    network: keras.Model
    optimizer: Optimizer
    scale: LossScale | None
    clip: float
    weights: Buffers
    statistics: Buffers
    slots: tuple[Buffers, ...]

    @classmethod
    def create(
        cls,
        network: keras.Model,
        optimizer: Any,
        scale: LossScale | None = None,
        clip: float = 0.0,
        size: int | None = None,
    ) -> "Updater":
        """Builds the optimizer and creates the buffers.  Call it inside the replicas' scope.

        Args:
          network: see the attributes.
          optimizer: see the attributes.
          scale: see the attributes.
          clip: see the attributes.
          size: number of elements from which a weight has a buffer of its own; None for a single
            buffer, which networks with spectral norms always have.
        """
        optimizer.build(network.trainable_variables)
        if has_spectral_norms(network.layers):
            size = None
        statistics = [v for v in network.non_trainable_variables if v.dtype == "float32"]
        return cls(
            network,
            optimizer,
            scale,
            clip,
            Buffers.create(network.trainable_variables, "weights", size),
            Buffers.create(statistics, "statistics"),
            tuple(Buffers.create(slot, "slot", size) for slot in optimizer.slots()),
        )

    @property
    def buffers(self) -> tuple[Buffers, ...]:
        """All buffers."""
        return (self.weights, self.statistics, *self.slots)


class TracedNetwork:
    """A network inside a step: its variables are tensors that the step reads and replaces.

    A step creates one for each replica, because it changes while the step is traced.

    Attributes:
      weights: the values of the weights, before spectral normalization.
    """

    def __init__(self, updater: Updater, updates: tf.Tensor | int = 0) -> None:
        """Reads the variables.

        Args:
          updater: the network with its optimizer, whose buffers are loaded.
          updates: number of updates before the step, an integer scalar in host memory.
        """
        self._updater, self._updates = updater, updates
        self._norms = SpectralNorms(updater.network.layers, updater.weights.places())
        self._halved = _read_in_half(updater.network, self._norms)
        self._statistics = updater.statistics.parts()
        self._normalized: Normalized | None = None
        self._tape: tf.GradientTape | None = None
        self._uses: list[list[tf.Tensor]] = []
        self._read_weights()

    @property
    def compute_dtype(self) -> str:
        """Number format in which the network computes, such as "bfloat16"."""
        return self._updater.network.compute_dtype

    @property
    def scale(self) -> LossScale | None:
        """The loss scale."""
        return self._updater.scale

    def iterate(self) -> None:
        """Runs the power iterations of spectral norms.  Call it once before each update."""
        with self._scope(self.weights):
            self._norms.iterate()
        self._normalized = None

    def __call__(self, inputs: Any) -> tf.Tensor:
        """Calls the network in training mode, and keeps the statistics that it updates."""
        weights = self._cast_weights()
        if self._tape is not None:
            weights = [tf.identity(weight) for weight in weights]
            self._tape.watch(weights)
            self._uses.append(weights)
        by_variable = zip(self._updater.weights.variables, weights, strict=True)
        weight_of = {id(variable): weight for variable, weight in by_variable}
        normalized = {id(layer): weight_of[id(layer.kernel)] for layer in self._norms.layers}
        with self._scope(weights), kernels.use(normalized):
            return self._updater.network(inputs, training=True)

    def watch(self, tape: tf.GradientTape) -> None:
        """Makes a tape record what depends on the weights, until `gradients` is called.

        Each call of the network uses tensors of its own, so that the gradients of all calls are
        added as one buffer each and not weight by weight.
        """
        self._tape, self._uses = tape, []

    @contextlib.contextmanager
    def in_branch(self) -> Iterator[None]:
        """Forgets after the block what it computed: other parts of a graph cannot use it."""
        before = self._normalized, self._statistics
        yield
        self._normalized, self._statistics = before

    def gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
        """Returns the gradients of a loss, times the loss scale.  Call it outside the tape.

        They are those of the weights as the network uses them, after spectral normalization.

        Returns:
          [size] float32 for each buffer of the weights, in its layout.
        """
        uses, self._tape, self._uses = self._uses, None, []
        # Scaling the loss is the same as scaling the gradient that starts the backward pass.
        start = None if self.scale is None else self.scale.value
        return self._updater.weights.join_sum(tape.gradient(loss, uses, output_gradients=start))

    def apply(self, gradients: list[tf.Tensor], images: tf.Tensor | int) -> tf.Tensor:
        """Updates the network with the sum over replicas of what `gradients` returned.

        With a loss scale, every replica skips the update if the gradient of any replica is not
        finite, because all of them check the same sum.

        Args:
          gradients: [size] float32 for each buffer of the weights.
          images: number of images seen, an integer scalar in host memory.

        Returns:
          Half of the squared Euclidean norm of the sum without the loss scale, a scalar that is
          equal on every replica.  It is not finite if the gradient was not.
        """
        updater = self._updater
        summed = replicas.sum_over_replicas(gradients)
        gradients = list(self._normalize().weight_gradient(summed))
        half_square = tf.add_n([tf.nn.l2_loss(gradient) for gradient in gradients])
        number, finite = self._count_update(), None
        if self.scale is not None:
            half_square /= tf.square(self.scale.value)
            finite = tf.math.is_finite(half_square)
            factor = tf.cast(finite, tf.float32) / self.scale.value
            gradients = [tf.math.multiply_no_nan(gradient, factor) for gradient in gradients]
            iterations = updater.optimizer.iterations.value
            number = iterations + tf.cast(finite, iterations.dtype)
            assign_own(iterations, number)
        for k, (buffer, gradient) in enumerate(zip(updater.weights.each, gradients, strict=True)):
            slots = [slot.each[k].flat for slot in updater.slots]
            updater.optimizer.update(Update(buffer.flat, slots, gradient, images, number, finite))
            if updater.clip:
                buffer.replace(tf.clip_by_value(buffer.value(), -updater.clip, updater.clip))
        if self.scale is not None:
            self.scale.after(finite)
        self._read_weights()
        return half_square

    def write_statistics(self) -> None:
        """Writes the statistics into the buffer.  Call it at the end of the step."""
        self._updater.statistics.assign(self._statistics)

    def _count_update(self) -> tf.Tensor | int:
        """Returns the number of the present update, if none was skipped, from 1."""
        with program.outside(), on_host():
            self._updates = self._updates + 1
        return self._updates

    def _cast_weights(self) -> list[tf.Tensor]:
        """Returns the weights as the network uses them, each in the number format of its layer.

        They are cast as whole buffers, because each cast takes a kernel launch.
        """
        buffers, flats = self._updater.weights, self._normalize().weights
        weights = buffers.parts(flats)
        if not self._halved:
            return weights
        halves = buffers.parts([tf.cast(flat, self.compute_dtype) for flat in flats])
        return [
            half if id(variable) in self._halved else weight
            for variable, weight, half in zip(buffers.variables, weights, halves, strict=True)
        ]

    def _read_weights(self) -> None:
        self._flats = self._updater.weights.values()
        self.weights = self._updater.weights.parts(self._flats)
        self._normalized = None

    def _normalize(self) -> Normalized:
        """Returns the weights as the network uses them, until the next iteration or update."""
        if self._normalized is None:
            with self._scope(self.weights):
                self._normalized = self._norms.normalize(self._flats)
        return self._normalized

    @contextlib.contextmanager
    def _scope(self, weights: Sequence[tf.Tensor]) -> Iterator[None]:
        """Makes the tensors the values of the variables, and keeps what layers assign to them."""
        updater = self._updater
        variables = (*updater.weights.variables, *updater.statistics.variables)
        values = (*weights, *self._statistics)
        with keras.StatelessScope() as scope:
            for pair in zip(variables, values, strict=True):
                scope.add_update(pair)  # unlike the constructor, it keeps the number format
            yield
        self._statistics = [scope.get_current_value(v) for v in updater.statistics.variables]
        for variable in updater.network.non_trainable_variables:
            if variable.dtype != "float32":  # a state of another type, which no buffer holds
                value = scope.get_current_value(variable)
                if value is not None:
                    assign_own(variable.value, value)


def _read_in_half(network: keras.Model, norms: SpectralNorms) -> set[int]:
    """Returns the ids of the trained variables that their layers use in half precision only."""
    half = network.compute_dtype
    if half == "float32":
        return set()
    found = {id(layer.kernel) for layer in norms.layers if layer.compute_dtype == half}
    for layer in network._flatten_layers():  # also those inside of other layers
        if layer.autocast and layer.compute_dtype == half:
            own = layer._trainable_variables
            found |= {id(variable) for variable in own if variable._autocast}
    return found
