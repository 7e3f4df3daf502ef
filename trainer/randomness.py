"""Random numbers as functions of (seed, step, purpose, position in the global batch).

No draw depends on what was drawn before or on how many replicas carry the run: each
draw is made for the global batch and every replica takes its rows.
"""

import contextlib
import dataclasses
import itertools
import threading
import zlib
from collections.abc import Iterator

import tensorflow as tf

from trainer.config import Config


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of one step on one replica.

    Attributes:
      seed: the run's seed, in [0, 2**31); a number or an int64 scalar.
      step: number of the step, a scalar.
      batch_size: rows of the global batch.
      first_row: the replica's first row in it.
      rows: how many rows are the replica's.
      scope: names the part of the step, so that no two parts share their numbers.
      noise_level: what noise that decays over training is scaled by.
    """

    seed: tf.Tensor | int
    step: tf.Tensor | int
    batch_size: int
    first_row: tf.Tensor | int = 0
    rows: int | None = None
    scope: str = ""
    noise_level: tf.Tensor | float = 1.0

    def within(self, name: str) -> "Draws":
        """The same step's draws for another part of it."""
        return dataclasses.replace(self, scope=f"{self.scope}/{name}")

    def part(self, first: int, rows: int) -> "Draws":
        """The draws of some of the rows, from the replica's row `first` on."""
        return dataclasses.replace(self, first_row=self.first_row + first, rows=rows)

    def normal(self, purpose: str, shape: tuple[int, ...], parts: int = 1) -> tf.Tensor:
        """N(0, 1), [parts * rows, *shape] float32."""
        return self._draw(tf.random.stateless_normal, purpose, shape, parts)

    def truncated_normal(self, purpose: str, shape: tuple[int, ...]) -> tf.Tensor:
        """N(0, 1) without what is beyond 2, [rows, *shape] float32."""
        return self._draw(tf.random.stateless_truncated_normal, purpose, shape)

    def uniform(self, purpose: str, shape: tuple[int, ...], parts: int = 1) -> tf.Tensor:
        """Uniform on [0, 1), [parts * rows, *shape] float32.

        `parts` is the number of batches that stand one after another, as reals and
        fakes do where the discriminator sees them together.
        """
        return self._draw(tf.random.stateless_uniform, purpose, shape, parts)

    def integers(self, purpose: str, below: int) -> tf.Tensor:
        """Uniform on 0 .. below - 1, [rows] int32."""
        draw = self.uniform(purpose, ())
        return tf.minimum(tf.cast(draw * below, tf.int32), below - 1)

    def _draw(self, function, purpose, shape, parts=1):
        stream = zlib.crc32(f"{self.scope}/{purpose}".encode())
        key = tf.cast(self.seed, tf.int64) * 2**32 + stream
        seed = tf.stack([key, tf.cast(self.step, tf.int64)])
        rows = self.batch_size if self.rows is None else self.rows
        # XLA's Philox gives other numbers for the same key.
        without_xla = tf.xla.experimental.jit_scope(compile_ops=False)
        with contextlib.nullcontext() if tf.executing_eagerly() else without_xla:
            whole = function([parts, self.batch_size, *shape], seed, alg="philox")
        mine = whole[:, self.first_row : self.first_row + rows]
        return tf.reshape(mine, [parts * rows, *shape])


def latents(config: Config, draws: Draws) -> tf.Tensor:
    """Latent vectors [rows, latent_dim] float32 of the distribution that is set."""
    shape = (config.latent_dim,)
    if config.latent_distribution == "uniform":
        return 2.0 * draws.uniform("latents", shape) - 1.0
    if config.latent_distribution == "truncated_normal":
        return draws.truncated_normal("latents", shape)
    return draws.normal("latents", shape)


_current = threading.local()  # replicas are traced in threads of their own


@contextlib.contextmanager
def initial_values(seed: int, network: str) -> Iterator[None]:
    """Lets `initial_seed` count the initial values of a network that is built in the block."""
    _current.initial = (zlib.crc32(f"{seed}/{network}/{n}".encode()) for n in itertools.count())
    try:
        yield
    finally:
        _current.initial = None


def initial_seed() -> int:
    """The seed of the next initial value of the network that is being built.

    Keras would draw one from Python's own generator, which any thread may move on.
    """
    return next(_current.initial)


@contextlib.contextmanager
def use(draws: Draws) -> Iterator[None]:
    """Lets layers inside the block draw from `draws`."""
    outer = getattr(_current, "draws", None)
    _current.draws = draws
    try:
        yield
    finally:
        _current.draws = outer


def current() -> Draws:
    """The draws of the enclosing `use` block.

    Raises:
      RuntimeError: outside of one; a layer that draws was called in training mode.
    """
    draws = getattr(_current, "draws", None)
    if draws is None:
        raise RuntimeError("a layer that draws random numbers was called outside a step")
    return draws
