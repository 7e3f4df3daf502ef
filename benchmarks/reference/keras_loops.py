"""The reference systems, written in plain Keras and TensorFlow.

There are two styles: a Python loop of `predict` and `train_on_batch` over NumPy arrays, with
the discriminator frozen inside an adversarial model, and one tf.function per step, called
from a Python loop over a tf.data pipeline of floats. The batch size, the optimizers and the
updates of a step are those of the recipe of the same name.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.harness import Work
from benchmarks.reference import keras_networks
from benchmarks.trained import images as random_images
from trainer import recipes
from trainer.config import Config
from trainer.config.schedules import Schedule, value_at
from trainer.data.images import ImageSet
from trainer.models.kernels import NormalizedKernel
from trainer.recipes.networks import build_networks

FROZEN = ("dcgan-sigmoid", "mlp-small", "cgan")  # written with predict and train_on_batch
PLAIN = (*FROZEN, "mlp", "dcgan-kstep")  # recipes with networks in keras_networks


def work(
    *,
    side: int = 28,
    channels: int = 1,
    count: int = 10_000,
    precision: str = "float32",
    jit_compile: str | bool = "auto",
    **given: Any,
) -> Work:
    """Returns training steps of the reference for a recipe, one per repetition."""
    config = recipes.resolve(given)
    loop = make(config, random_images(count, side, channels), precision, jit_compile)

    def call(times: int) -> list[float]:
        for _ in range(times):
            losses = loop.step()
        return [float(loss) for loss in losses]

    return Work(call, config.batch_size, {"batch": config.batch_size})


def make(
    config: Config, data: ImageSet, precision: str = "float32", jit_compile: str | bool = "auto"
) -> "FrozenLoop | TapeLoop":
    """Returns the training loop of `config.recipe` on its networks.

    `jit_compile` is the argument of Model.compile, whose default lets Keras choose XLA.
    Programs written for earlier versions of Keras ran without XLA.
    """
    keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_tensor_float_32_execution(precision != "float32")
    whole = precision in ("float32", "tf32")
    keras.config.set_dtype_policy("float32" if whole else f"mixed_{precision}")
    networks = networks_of(config, data)
    if config.recipe in FROZEN:
        return FrozenLoop(config, *_floats(config, data), *networks, jit_compile)
    return TapeLoop(config, *_floats(config, data), *networks)


def networks_of(config: Config, data: ImageSet) -> tuple[keras.Model, keras.Model]:
    """Returns plain Keras networks, cloned from the trainer's if keras_networks has none."""
    if config.recipe not in PLAIN:
        built = build_networks(config, data.shape)
        generator, discriminator = (
            keras.models.clone_model(network, clone_function=_plain) for network in built
        )
        return generator, discriminator
    build = getattr(keras_networks, config.recipe.replace("-", "_"))
    return build(data.shape.size, data.shape.channels, data.shape.classes)


def _plain(layer: keras.layers.Layer) -> keras.layers.Layer:
    if isinstance(layer, NormalizedKernel):
        return keras.layers.SpectralNormalization(layer.plain())
    return getattr(layer, "plain_kind", type(layer)).from_config(layer.get_config())


def _floats(config: Config, data: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images as float32 in the recipe's image range, and the labels."""
    images = np.asarray(data.images).astype(np.float32)
    return images / 127.5 - 1 if config.image_range == "tanh" else images / 255, data.labels


def _optimizer(config: Config, network: str) -> keras.optimizers.Optimizer:
    rate, beta2 = getattr(config, f"{network}_lr"), value_at(config.beta2, 0)
    if config.optimizer == "adam":
        return keras.optimizers.Adam(rate, beta_1=config.beta1, beta_2=beta2)
    if isinstance(rate, Schedule):
        decay = rate.decay_per_kimg * config.batch_size / 1000
        rate = keras.optimizers.schedules.InverseTimeDecay(rate.start, 1, decay)
    return keras.optimizers.RMSprop(rate, rho=beta2)


class FrozenLoop:
    """A loop of predict, train_on_batch on D, and train_on_batch on an adversarial model.

    In conditional models the labels are the second input.
    """

    def __init__(
        self,
        config: Config,
        images: np.ndarray,
        labels: np.ndarray,
        generator: keras.Model,
        discriminator: keras.Model,
        jit_compile: str | bool = "auto",
    ) -> None:
        self.config, self.images, self.labels = config, images, labels
        self.generator, self.jit_compile = generator, jit_compile
        verdict = keras.layers.Activation("sigmoid", dtype="float32")(discriminator.outputs[0])
        self.discriminator = keras.Model(discriminator.inputs, verdict)
        self._compile(self.discriminator, "d")
        # Keras 3 reads which weights are trainable when it first traces, so trace before freezing.
        self._train_d(*self._reals(), self._noise())
        self.discriminator.trainable = False
        drawn = [*generator.outputs, *generator.inputs[1:]]
        judged = self.discriminator(drawn if config.conditional else drawn[0])
        self.adversarial = keras.Model(generator.inputs, judged)
        self._compile(self.adversarial, "g")

    def step(self) -> tuple[float, float]:
        """Runs one step; returns the losses of D and G."""
        d_loss = self._train_d(*self._reals(), self._noise())
        classes = np.random.randint(0, self.labels.max() + 1, self.config.batch_size)
        inputs = self._inputs(self._noise(), classes)
        g_loss, _ = self.adversarial.train_on_batch(inputs, np.ones([self.config.batch_size, 1]))
        return d_loss, g_loss

    def _compile(self, model: keras.Model, network: str) -> None:
        optimizer = _optimizer(self.config, network)
        model.compile(
            optimizer,
            loss="binary_crossentropy",
            metrics=["accuracy"],
            jit_compile=self.jit_compile,
        )

    def _train_d(self, reals: np.ndarray, labels: np.ndarray, noise: np.ndarray) -> float:
        batch = self.config.batch_size
        fakes = self.generator.predict(self._inputs(noise, labels), verbose=0)
        if self.config.updates.batches == "joint":
            both, targets = np.concatenate((reals, fakes)), np.ones([2 * batch, 1])
            targets[batch:] = 0
            return self.discriminator.train_on_batch(both, targets)[0]
        train = self.discriminator.train_on_batch
        on_reals = train(self._inputs(reals, labels), np.ones([batch, 1]))
        on_fakes = train(self._inputs(fakes, labels), np.zeros([batch, 1]))
        return 0.5 * (on_reals[0] + on_fakes[0])

    def _reals(self) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.random.randint(0, len(self.images), self.config.batch_size)
        return self.images[chosen], self.labels[chosen]

    def _noise(self) -> np.ndarray:
        shape = (self.config.batch_size, self.config.latent_dim)
        if self.config.latent_distribution == "uniform":
            return np.random.uniform(-1, 1, shape)
        return np.random.normal(0, 1, shape)

    def _inputs(self, values: np.ndarray, labels: np.ndarray) -> Any:
        return [values, labels] if self.config.conditional else values


class TapeLoop:
    """A loop of one tf.function call per step on batches of a tf.data pipeline."""

    def __init__(
        self,
        config: Config,
        images: np.ndarray,
        labels: np.ndarray,
        generator: keras.Model,
        discriminator: keras.Model,
    ) -> None:
        self.config, self.classes = config, int(labels.max()) + 1
        self.generator, self.discriminator = generator, discriminator
        self.g_optimizer, self.d_optimizer = _optimizer(config, "g"), _optimizer(config, "d")
        self.g_optimizer.build(generator.trainable_variables)
        self.d_optimizer.build(discriminator.trainable_variables)
        self.average = None
        if config.ema_half_life_kimg:
            self.average = keras.models.clone_model(generator)
            self.average.set_weights(generator.get_weights())
        self.batches = self._forever(images, labels)
        self.train_step = tf.function(self._train_step)

    def step(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs one step; returns the losses of D and G."""
        reals = 1 if self.config.repeat_reals else self.config.d_steps
        return self.train_step([next(self.batches) for _ in range(reals)])

    def _forever(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images))
        # Drop the last, smaller batch, which would be traced separately.
        dataset = dataset.batch(self.config.batch_size, drop_remainder=True)
        if self.config.horizontal_flip:
            dataset = dataset.map(
                lambda x, y: (tf.image.random_flip_left_right(x), y), tf.data.AUTOTUNE
            )
        if self.config.recipe != "mlp":
            dataset = dataset.prefetch(tf.data.AUTOTUNE)
        while True:
            yield from dataset

    def _train_step(self, batches: Sequence) -> tuple[tf.Tensor, tf.Tensor]:
        if self.config.updates.fakes == "simultaneous":
            return self._train_both(*batches[0])
        for k in range(self.config.d_steps):
            d_loss = self._train_d(*batches[0 if self.config.repeat_reals else k])
        g_loss = self._train_g()
        if self.average is not None:
            half_life = value_at(self.config.ema_half_life_kimg, 0)
            keep = 0.5 ** (self.config.batch_size / (1000 * half_life))
            for old, new in zip(self.average.variables, self.generator.variables):
                old.assign(keep * old + (1 - keep) * new)
        return d_loss, g_loss

    def _train_d(self, reals: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        fakes = self._draw(labels)
        with tf.GradientTape() as tape:
            loss = self._d_loss(*self._judge_both(reals, fakes, labels))
        self._apply(tape, loss, self.d_optimizer, self.discriminator)
        return loss

    def _train_g(self) -> tf.Tensor:
        labels = tf.random.uniform([self.config.batch_size], 0, self.classes, tf.int32)
        with tf.GradientTape() as tape:
            loss = self._g_loss(self._judge(self._draw(labels), labels))
        self._apply(tape, loss, self.g_optimizer, self.generator)
        return loss

    def _train_both(self, reals: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Updates both networks from the same weights and the same fakes."""
        with tf.GradientTape() as g_tape, tf.GradientTape() as d_tape:
            on_reals, on_fakes = self._judge_both(reals, self._draw(labels), labels)
            d_loss, g_loss = self._d_loss(on_reals, on_fakes), self._g_loss(on_fakes)
        self._apply(g_tape, g_loss, self.g_optimizer, self.generator)
        self._apply(d_tape, d_loss, self.d_optimizer, self.discriminator)
        return d_loss, g_loss

    def _apply(
        self,
        tape: tf.GradientTape,
        loss: tf.Tensor,
        optimizer: keras.optimizers.Optimizer,
        network: keras.Model,
    ) -> None:
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables))

    def _draw(self, labels: tf.Tensor) -> tf.Tensor:
        noise = tf.random.normal([self.config.batch_size, self.config.latent_dim])
        return self.generator(self._inputs(noise, labels), training=True)

    def _judge(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        logits = self.discriminator(self._inputs(images, labels), training=True)
        return tf.cast(tf.reshape(logits, [-1]), tf.float32)

    def _judge_both(
        self, reals: tf.Tensor, fakes: tf.Tensor, labels: tf.Tensor
    ) -> Sequence[tf.Tensor]:
        fakes = tf.cast(fakes, tf.float32)
        if self.config.updates.batches != "joint":
            return self._judge(reals, labels), self._judge(fakes, labels)
        both = tf.concat([reals, fakes], 0), tf.concat([labels, labels], 0)
        return tf.split(self._judge(*both), 2)

    def _d_loss(self, on_reals: tf.Tensor, on_fakes: tf.Tensor) -> tf.Tensor:
        if self.config.loss == "hinge":
            losses = tf.nn.relu(1 - on_reals), tf.nn.relu(1 + on_fakes)
        else:
            entropy = tf.nn.sigmoid_cross_entropy_with_logits
            losses = (
                entropy(tf.ones_like(on_reals), on_reals),
                entropy(tf.zeros_like(on_fakes), on_fakes),
            )
        total = tf.reduce_mean(losses[0]) + tf.reduce_mean(losses[1])
        return 0.5 * total if self.config.updates.batches == "joint" else total

    def _g_loss(self, on_fakes: tf.Tensor) -> tf.Tensor:
        if self.config.loss == "hinge":
            return -tf.reduce_mean(on_fakes)
        entropy = tf.nn.sigmoid_cross_entropy_with_logits
        return tf.reduce_mean(entropy(tf.ones_like(on_fakes), on_fakes))

    def _inputs(self, values: tf.Tensor, labels: tf.Tensor) -> Any:
        return [values, labels] if self.config.conditional else values
