"""The state that training changes: networks, moving average, optimizers and counters."""

import dataclasses

import keras
import tensorflow as tf

from trainer import recipes
from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models.graph import freeze
from trainer.recipes.networks import build_networks
from trainer.training import adaptation, optimizers
from trainer.training.adaptation import AdaptiveStrength
from trainer.training.buffer import Buffer, Buffers
from trainer.training.updates import LossScale, Updater

# Elements from which a weight has a buffer of its own where operations run side by side on CPU
# cores.  An update by itself of a smaller one would not pay.
BUFFER_SIZE = 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class TrainState:
    """The state of a run.

    Attributes:
      g, d: the generator and the discriminator with their optimizers.
      ema_generator: the generator with the moving average of its weights and batch-norm
        statistics, or None.
      images: number of images seen, int64; each step adds the batch size.
      rollbacks: number of rollbacks after divergence, int64.
      augment: the adaptive strength of the augmentation, or None.
      average: while steps run, the values of the moving average: its weights, then its statistics.
    """

    g: Updater
    d: Updater
    ema_generator: keras.Model | None
    images: tf.Variable
    rollbacks: tf.Variable
    augment: AdaptiveStrength | None = None
    average: tuple[Buffers, ...] = ()

    @property
    def generator(self) -> keras.Model:
        """The generator that is trained."""
        return self.g.network

    @property
    def discriminator(self) -> keras.Model:
        """The discriminator."""
        return self.d.network

    @property
    def sampling_generator(self) -> keras.Model:
        """The generator that samples are drawn from: the moving average if there is one."""
        return self.ema_generator or self.generator

    def steps_done(self, batch_size: int) -> int:
        """Returns the number of steps done, of `batch_size` images each."""
        return int(self.images.numpy()) // batch_size

    def networks(self) -> dict[str, keras.Model]:
        """Returns the networks by their names in checkpoints."""
        named = dict(generator=self.generator, discriminator=self.discriminator)
        return named if self.ema_generator is None else {**named, "average": self.ema_generator}

    def buffers_by_network(self) -> dict[str, tuple[Buffers, ...]]:
        """Returns the buffers of each network's variables, by its name in checkpoints."""
        named: dict[str, tuple[Buffers, ...]] = dict(
            generator=(self.g.weights, self.g.statistics),
            discriminator=(self.d.weights, self.d.statistics),
        )
        return {**named, "average": self.average} if self.average else named

    def load(self) -> None:
        """Copies the variables into the buffers.  Call it on each replica before the steps."""
        for buffer in self._buffers():
            buffer.load()

    def store(self) -> None:
        """Copies the buffers into the variables.  Call it on each replica after the steps."""
        for buffer in self._buffers():
            buffer.store()

    def _buffers(self) -> tuple[Buffers, ...]:
        return (*self.g.buffers, *self.d.buffers, *self.average)

    def all_variables(self) -> list[tf.Variable]:
        """Returns every variable that a checkpoint holds."""
        found = [v.value for network in self.networks().values() for v in network.variables]
        for updater in (self.g, self.d):
            found += [variable.value for variable in updater.optimizer.variables]
            if updater.scale is not None:
                found += [updater.scale.value, updater.scale.finite_steps]
        if self.augment is not None:
            found += [self.augment.value, self.augment.judged_real]
        return [*found, self.images, self.rollbacks]

    def trackables(self) -> dict[str, object]:
        """Returns everything that a checkpoint holds, by name."""
        named: dict[str, object] = dict(
            **self.networks(), images=self.images, rollbacks=self.rollbacks
        )
        for name, updater in (("g", self.g), ("d", self.d)):
            named[f"{name}_optimizer"] = updater.optimizer
            if updater.scale is not None:
                named[f"{name}_loss_scale"] = updater.scale.value
                named[f"{name}_finite_steps"] = updater.scale.finite_steps
        if self.augment is not None:
            named["augment_strength"] = self.augment.value
            named["augment_judged_real"] = self.augment.judged_real
        return named


def create_state(
    config: Config, shape: ImageShape, precision: str, *, on_gpus: bool = False
) -> TrainState:
    """Creates the state of a run.  Call it inside the scope of the replicas.

    Args:
      config: the configuration of the run.
      shape: the shape of its images.
      precision: the number format; float16 scales the losses.
      on_gpus: whether the replicas are GPUs, where a network has a single buffer of weights.

    Raises:
      UsageError: if the networks cannot be built, or --d_freeze_layers is too large.
    """
    generator, discriminator = build_networks(config, shape)
    freeze(discriminator, config.d_freeze_layers)  # the optimizer then has no slots for them
    images, rollbacks = _counter("images"), _counter("rollbacks")
    side_by_side = recipes.get(config.networks).fully_connected and not on_gpus
    buffer_size = BUFFER_SIZE if side_by_side else None

    def updater(network: keras.Model, name: str, clip: float) -> Updater:
        scale = LossScale.create() if precision == "float16" else None
        optimizer = optimizers.make(config, name, images)
        return Updater.create(network, optimizer, scale, clip, buffer_size)

    g, d = updater(generator, "g", 0.0), updater(discriminator, "d", config.d_clip)
    ema_generator = None
    if config.ema_half_life_kimg:
        ema_generator = keras.models.clone_model(generator)
        ema_generator.trainable = False
        copy_weights(generator, ema_generator)
    augment = None
    if config.augment_strength == "adaptive":
        augment = AdaptiveStrength.create(adaptation.rule_of(config))
    average = () if ema_generator is None else _average_buffers(g, ema_generator)
    return TrainState(g, d, ema_generator, images, rollbacks, augment, average)


def _average_buffers(g: Updater, ema_generator: keras.Model) -> tuple[Buffers, ...]:
    """Returns buffers of the moving average that match those of the generator."""
    averaged = {
        id(variable): average
        for variable, average in zip(g.network.variables, ema_generator.variables, strict=True)
    }

    def like(buffers: Buffers) -> Buffers:
        return Buffers(
            tuple(
                Buffer.create([averaged[id(variable)] for variable in buffer.variables], "average")
                for buffer in buffers.each
            )
        )

    return like(g.weights), like(g.statistics)


def _counter(name: str) -> tf.Variable:
    aggregation = tf.VariableAggregation.ONLY_FIRST_REPLICA
    return tf.Variable(0, dtype=tf.int64, trainable=False, aggregation=aggregation, name=name)


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies all variables of a network to another one of the same architecture."""
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(old)
