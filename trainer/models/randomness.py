"""Random numbers as functions of (seed, step, purpose, position in the global batch).

No draw depends on earlier draws or on the number of replicas: each draw is made for the
global batch, and every replica takes its own rows.
"""

import contextlib
import dataclasses
import itertools
import threading
import zlib
from collections.abc import Callable, Iterator

import tensorflow as tf

from trainer.config import Config
from trainer.machine import program
from trainer.machine.devices import on_host

PHILOX = 1  # the algorithm's number


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of one step on one replica.

    Attributes:
      seed: seed of the run in [0, 2**31), a number or an int64 scalar.
      step: step number, a scalar.
      batch_size: number of rows of the global batch.
      first_row: first row of the replica in the global batch.
      rows: number of rows of the replica; None means batch_size.
      scope: name of the part of the step; different parts use different numbers.
      images: number of images seen, for what follows a schedule.
    """

    seed: tf.Tensor | int
    step: tf.Tensor | int
    batch_size: int
    first_row: tf.Tensor | int = 0
    rows: int | None = None
    scope: str = ""
    images: tf.Tensor | int = 0

    def within(self, name: str) -> "Draws":
        """Returns the draws for a named part of the same step."""
        return dataclasses.replace(self, scope=f"{self.scope}/{name}")

    def part(self, first: int, rows: int) -> "Draws":
        """Returns the draws of `rows` rows, starting at the replica's row `first`."""
        return dataclasses.replace(self, first_row=self.first_row + first, rows=rows)

    def normal(self, purpose: str, shape: tuple[int, ...], parts: int = 1) -> tf.Tensor:
        """Draws from N(0, 1), [parts * rows, *shape] float32."""
        return self._draw(tf.raw_ops.StatelessRandomNormalV2, purpose, shape, parts)

    def truncated_normal(self, purpose: str, shape: tuple[int, ...]) -> tf.Tensor:
        """Draws from N(0, 1) truncated to [-2, 2], [rows, *shape] float32."""
        return self._draw(tf.raw_ops.StatelessTruncatedNormalV2, purpose, shape)

    def uniform(self, purpose: str, shape: tuple[int, ...], parts: int = 1) -> tf.Tensor:
        """Draws uniformly from [0, 1), [parts * rows, *shape] float32.

        `parts` is the number of concatenated batches: 2 where the discriminator processes
        real and generated images together.
        """
        return self._draw(tf.raw_ops.StatelessRandomUniformV2, purpose, shape, parts)

    def integers(self, purpose: str, below: int) -> tf.Tensor:
        """Draws uniformly from 0 .. below - 1, [rows] int32."""
        draw = self.uniform(purpose, ())
        # The product can round to `below`. It is limited before the cast, because the minimum of
        # int32 runs on the host.
        return tf.cast(tf.minimum(draw * below, below - 0.5), tf.int32)

    def _draw(
        self, function: Callable, purpose: str, shape: tuple[int, ...], parts: int = 1
    ) -> tf.Tensor:
        stream = zlib.crc32(f"{self.scope}/{purpose}".encode())
        with program.outside():  # XLA's Philox generates different numbers for the same key
            with on_host():
                key = tf.cast(self.seed, tf.int64) * 2**32 + stream
                seed = tf.stack([key, tf.cast(self.step, tf.int64)])
                # The functions of tf.random compute these on the device, by a dozen kernels.
                key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
            without_xla = tf.xla.experimental.jit_scope(compile_ops=False)
            with contextlib.nullcontext() if tf.executing_eagerly() else without_xla:
                whole = function(
                    shape=[parts, self.batch_size, *shape], key=key, counter=counter, alg=PHILOX
                )
        rows = self.batch_size if self.rows is None else self.rows
        if rows < self.batch_size:
            whole = whole[:, self.first_row : self.first_row + rows]
        return tf.reshape(whole, [parts * rows, *shape])


def latents(config: Config, draws: Draws) -> tf.Tensor:
    """Draws latent vectors [rows, latent_dim] float32 from config.latent_distribution."""
    shape = (config.latent_dim,)
    if config.latent_distribution == "uniform":
        return 2.0 * draws.uniform("latents", shape) - 1.0
    if config.latent_distribution == "truncated_normal":
        return draws.truncated_normal("latents", shape)
    return draws.normal("latents", shape)


_current = threading.local()  # each replica is traced in its own thread


@contextlib.contextmanager
def initial_values(seed: int, network: str) -> Iterator[None]:
    """Makes `initial_seed` number the initial values of a network built in the block."""
    _current.initial = (zlib.crc32(f"{seed}/{network}/{n}".encode()) for n in itertools.count())
    try:
        yield
    finally:
        _current.initial = None


def initial_seed() -> int:
    """Returns the seed of the next initial value of the network being built.

    Keras would draw it from Python's global generator, which any thread may advance.
    """
    return next(_current.initial)


@contextlib.contextmanager
def use(draws: Draws) -> Iterator[None]:
    """Makes layers called inside the block draw from `draws`."""
    outer = getattr(_current, "draws", None)
    _current.draws = draws
    try:
        yield
    finally:
        _current.draws = outer


def current() -> Draws:
    """Returns the draws of the enclosing `use` block.

    Raises:
      RuntimeError: if there is none, because a layer that draws random numbers was called
        in training mode outside a step.
    """
    draws = getattr(_current, "draws", None)
    if draws is None:
        raise RuntimeError("a layer that draws random numbers was called outside a step")
    return draws
