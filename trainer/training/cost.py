"""What a step costs: parameters, arithmetic and memory of each network, before the first step."""

import dataclasses
import math

import keras
import tensorflow as tf

from trainer.config import Config
from trainer.config.numbers import rounded
from trainer.models.objective import OBJECTIVES
from trainer.training import penalties
from trainer.training.utilisation import flops

ROWS = 64  # of the traced batch, so that work which does not depend on the batch hardly counts


@dataclasses.dataclass(frozen=True)
class Network:
    """What a network costs.

    Attributes:
      parameters: number of trainable weights, as publications count them.
      flops: floating-point operations of a forward pass, for each image.
      features: bytes of the outputs of its layers, for each image.
    """

    parameters: int
    flops: float
    features: int

    @classmethod
    def of(cls, network: keras.Model) -> "Network":
        """Measures a network, without running it."""
        inputs = [tf.TensorSpec([ROWS, *x.shape[1:]], x.dtype) for x in network.inputs]
        traced = tf.function(lambda *given: network(given if len(given) > 1 else given[0]))
        graph = traced.get_concrete_function(*inputs).graph
        outputs = [
            output for layer in network.layers for output in keras.tree.flatten(layer.output)
        ]
        parameters = sum(math.prod(weight.shape) for weight in network.trainable_weights)
        sizes = [math.prod(x.shape[1:]) * tf.as_dtype(x.dtype).size for x in outputs]
        return cls(parameters, flops(graph) / ROWS, sum(sizes))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a step costs.

    Attributes:
      config: the configuration of the run.
      g, d: what the networks cost.
    """

    config: Config
    g: Network
    d: Network

    @classmethod
    def of(cls, config: Config, generator: keras.Model, discriminator: keras.Model) -> "Cost":
        """Measures the networks of a run."""
        return cls(config, Network.of(generator), Network.of(discriminator))

    @property
    def g_flops(self) -> float:
        """Floating-point operations of the generator in a step, for each image of the batch.

        A backward pass costs twice as much as the forward pass, once for the gradients of the
        weights and once for those of the features.
        """
        only_for_d = self.config.d_steps - (self.config.updates.fakes != "new")
        return (3 + only_for_d) * self.g.flops

    @property
    def d_flops(self) -> float:
        """Floating-point operations of the discriminator in a step, for each image of the batch."""
        passes = 6.0  # forward and backward on reals and on fakes
        for penalty in penalties.active(self.config):
            # The gradient with respect to the images, and the backward pass through it. A penalty
            # that does not take the logits of the loss has a forward pass, with its backward pass.
            own = penalty.images == "between" or self.config.penalty_every > 1
            passes += (6 if own else 3) / self.config.penalty_every
        passes *= self.config.d_steps
        passes += 1  # from the generator's loss back to the fakes
        if self.config.updates.fakes != "simultaneous":
            passes += 2 if OBJECTIVES[self.config.loss].on_pairs else 1
        return passes * self.d.flops

    def bytes_per_device(self, rows: int) -> float:
        """Returns an estimate of the memory of a step on one device, in bytes.

        It counts parameters, gradients, optimizer slots and their buffers, and the features that a
        backward pass needs.  TensorFlow itself and its workspace for convolutions come on top.

        Args:
          rows: number of images that the device processes at once.
        """
        slots = 1 if self.config.optimizer == "sgd" else 2
        copies = 2 * (1 + slots) + 2  # variables and buffers, and the gradient, joined
        floats = copies * (self.g.parameters + self.d.parameters)
        if self.config.ema_half_life_kimg:
            floats += 2 * self.g.parameters
        d_update = 2 * self.d.features
        if penalties.active(self.config):
            d_update *= 2  # the first backward pass is kept for the second one
        judged = 2 if OBJECTIVES[self.config.loss].on_pairs else 1
        g_update = self.g.features + judged * self.d.features
        if self.config.updates.fakes != "new":
            d_update += self.g.features
        return 4.0 * floats + rows * max(d_update, g_update)

    def describe(self, rows: int, precision: str) -> str:
        """Returns the cost as a line for the user.

        Args:
          rows: number of images that a device processes at once.
          precision: number format of the networks.
        """
        gib = self.bytes_per_device(rows) / 2**30
        return (
            f"Generator of {self.g.parameters:,} parameters and {rounded(self.g_flops / 1e9, 3)} "
            f"GFLOP per image and step, discriminator of {self.d.parameters:,} and "
            f"{rounded(self.d_flops / 1e9, 3)}. "
            f"{rows} images at once in {precision} take about {rounded(gib, 2)} GiB on each device"
        )
