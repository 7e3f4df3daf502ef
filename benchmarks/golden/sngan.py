"""The networks of `sngan` with the parameters of a published implementation."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from benchmarks.golden.arrays import GRADIENT, Golden, from_keras, to_keras
from trainer import recipes
from trainer.config.dataset import ImageShape
from trainer.models.kernels import NormalizedDense
from trainer.models.spectral import SpectralConv2D
from trainer.models.spectral_norms import SpectralNorms
from trainer.recipes.networks import build_networks

MOMENTUM = 0.9


def kinds(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the prefixes of the networks that `compare` can compare."""
    return [
        name.removesuffix("param/G/l1.weight") for name in arrays if name.endswith("G/l1.weight")
    ]


def compare(golden: Golden) -> None:
    """Compares images, logits, losses, gradients, batch statistics and power iterations."""
    generator, discriminator = _build(golden)
    g, d = _Generator(generator, golden), _Discriminator(discriminator, golden)
    labels = [tf.constant(golden.shaped("in/y", "N"))] if "in/y" in golden else []
    latents, reals = tf.constant(golden["in/z"]), golden.images("in/real")

    def generate(*, training: bool) -> tf.Tensor:
        return generator([latents, *labels] if labels else latents, training=training)

    def discriminate(images: tf.Tensor) -> tf.Tensor:
        return discriminator([images, *labels] if labels else images, training=False)

    fakes = generate(training=False)
    golden.compare_images("out/G_eval_images", fakes)
    golden.compare("out/D_paper_fake", discriminate(fakes))
    golden.compare("out/D_paper_real", discriminate(reals))
    d.compare_singular_values()
    with tf.GradientTape() as tape:
        # Equations 16 and 17 of arXiv:1802.05957.
        loss = tf.reduce_mean(tf.nn.relu(1.0 - discriminate(reals)))
        loss += tf.reduce_mean(tf.nn.relu(1.0 + discriminate(fakes)))
    golden.compare("D/hinge", loss, GRADIENT)
    d.compare("D/grad_hinge/", tape, loss)
    with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(discriminate(generate(training=False)))
    golden.compare("G/hinge", loss, GRADIENT)
    g.compare("G/grad_hinge_eval_bn/", tape, loss)
    golden.compare_images("out/G_train_images", generate(training=True))
    g.compare_statistics(len(latents))
    d.iterate()
    golden.compare("out/D_paper_real_train_mode", discriminate(reals))


def _build(golden: Golden) -> tuple[keras.Model, keras.Model]:
    """Builds the networks at the widths of the file."""
    reals, z = golden.shaped("in/real", "N, C, H, W"), golden.shaped("in/z", "N, latents")
    classes = len(golden["param/D/l_y.weight"]) if "param/D/l_y.weight" in golden else 0
    size, first = reals.shape[-1], golden["param/G/block2.c1.weight"].shape[1]
    last = golden[_last_dense(golden)].shape[-1]
    settings = dict(recipe="sngan", conditional=bool(classes), latent_dim=z.shape[1])
    shape = ImageShape.square(size, reals.shape[1], classes)
    for _ in range(2):  # first at the published width, then scaled to that of the file
        generator, discriminator = build_networks(recipes.resolve(settings), shape)
        g_whole = generator.get_layer("block0_norm1").output.shape[-1]
        d_whole = _logit_layers(discriminator)[0].kernel.shape[0]
        settings = {**settings, "g_width": first / g_whole, "d_width": last / d_whole}
    return generator, discriminator


def _last_dense(golden: Golden) -> str:
    """Returns the name of the weight of the dense layer of D, such as l5.weight_orig."""
    names = [n for n in golden.names("param/D/") if re.fullmatch(r"l\d+\.weight(_orig)?", n)]
    return f"param/D/{names[0]}"


def _logit_layers(discriminator: keras.Model) -> list[NormalizedDense]:
    """Returns the dense layer of D and, with labels, that of the projection."""
    found = [layer for layer in discriminator.layers if isinstance(layer, NormalizedDense)]
    return sorted(found, key=lambda layer: layer.units)


class _Generator:
    """The generator with the parameters of a file."""

    def __init__(self, network: keras.Model, golden: Golden) -> None:
        self._network, self._golden = network, golden
        for name, layer, attribute, convert, back in self._weights():
            if "embed" in name:  # a row is [scale, shift]
                back = functools.partial(np.repeat, repeats=2, axis=-1)
            golden.assign(f"param/G/{name}", getattr(layer, attribute), convert, back)
        self._before = {name: v.numpy() for name, v in self._statistics()}

    def compare(self, start: str, tape: tf.GradientTape, loss: tf.Tensor) -> None:
        """Compares the gradients of a loss."""
        weights = [w for w in self._weights() if not w[2].startswith("moving")]
        gradients = tape.gradient(loss, [getattr(w[1], w[2]).value for w in weights])
        values: dict[str, list[np.ndarray]] = {}
        for (name, _, _, _, back), gradient in zip(weights, gradients, strict=True):
            values.setdefault(name, []).append(back(gradient.numpy()))
        for name, parts in values.items():  # a row of an embedding is [scale, shift]
            self._golden.compare(start + name, np.concatenate(parts, -1), GRADIENT)

    def compare_statistics(self, batch: int) -> None:
        """Compares the moving statistics after one batch in training mode."""
        for name, variable in self._statistics():
            ours, (old, layer_pixels) = variable.numpy(), (self._before[name], self._pixels(name))
            if name.endswith("running_var"):
                # The file has the unbiased variance of the batch, ours is the biased one.
                count = batch * layer_pixels
                kept = MOMENTUM * old
                ours = kept + (ours - kept) * count / (count - 1)
            self._golden.compare(f"out/G_after_train_{name}", ours)

    def _pixels(self, name: str) -> int:
        layer = next(w[1] for w in self._weights() if w[0] == name)
        return int(np.prod(layer.input.shape[1:3]))

    def _statistics(self) -> Iterator[tuple[str, keras.Variable]]:
        for name, layer, attribute, *_ in self._weights():
            if attribute.startswith("moving"):
                yield name, getattr(layer, attribute)

    def _weights(self) -> Iterator[tuple[str, keras.layers.Layer, str, Callable, Callable]]:
        """Yields golden name, layer, attribute and the conversions to and from Keras."""
        layer, names = self._network.get_layer, self._golden.names("param/G/")
        side, _, channels = layer("block0_norm1").input.shape[1:]

        def to_pixels(weight: np.ndarray) -> np.ndarray:
            """Reorders [C * H * W, ...] to [..., H * W * C]."""
            weight = weight.reshape(channels, side, side, -1).transpose(3, 1, 2, 0)
            return weight.reshape(-1, side * side * channels).squeeze()

        def from_pixels(weight: np.ndarray) -> np.ndarray:
            weight = weight.reshape(-1, side, side, channels).transpose(3, 1, 2, 0)
            return weight.reshape(side * side * channels, -1).squeeze()

        yield "l1.weight", layer("from_latents"), "kernel", to_pixels, from_pixels
        yield "l1.bias", layer("from_latents"), "bias", to_pixels, from_pixels
        blocks = sorted({int(m[1]) for n in names if (m := re.match(r"block(\d+)\.", n))})
        for k, block in enumerate(blocks):
            for part, ours in (("c1", "conv1"), ("c2", "conv2"), ("c_sc", "shortcut")):
                for end, attribute in (("weight", "kernel"), ("bias", "bias")):
                    name = f"block{block}.{part}.{end}"
                    yield name, layer(f"block{k}_{ours}"), attribute, to_keras, from_keras
            for number in (1, 2):
                yield from self._norm(f"block{block}.b{number}", f"block{k}_norm{number}")
        last = blocks[-1] + 1
        yield from self._norm(f"b{last}", "norm")
        for end, attribute in (("weight", "kernel"), ("bias", "bias")):
            yield f"c{last}.{end}", layer("to_image"), attribute, to_keras, from_keras

    def _norm(
        self, name: str, ours: str
    ) -> Iterator[tuple[str, keras.layers.Layer, str, Callable, Callable]]:
        layer = self._network.get_layer
        by_class = f"param/G/{name}.embed.weight" in self._golden
        bn = f"{name}.bn" if by_class else name
        if by_class:
            width = layer(ours).input.shape[-1]
            for kind, part in (("scale", slice(width)), ("shift", slice(width, None))):
                yield (
                    f"{name}.embed.weight", layer(f"{ours}_{kind}"), "kernel",
                    lambda rows, part=part: rows[:, part], np.asarray,
                )  # fmt: skip
        else:
            yield f"{name}.weight", layer(ours), "gamma", np.asarray, np.asarray
            yield f"{name}.bias", layer(ours), "beta", np.asarray, np.asarray
        yield f"{bn}.running_mean", layer(ours), "moving_mean", np.asarray, np.asarray
        yield f"{bn}.running_var", layer(ours), "moving_variance", np.asarray, np.asarray


class _Discriminator:
    """The discriminator with the parameters of a file."""

    def __init__(self, network: keras.Model, golden: Golden) -> None:
        self._network, self._golden = network, golden
        for name, layer in self.convolutions():
            rows = layer.kernel.shape[2]

            def to_ours(v: np.ndarray, rows: int = rows) -> np.ndarray:
                """Converts [C, H, W] to [H, W, C]."""
                return v.reshape(rows, -1).T.ravel()

            golden.assign(f"param/D/{name}.weight_v", layer.v, to_ours, np.asarray)
        for name, variable, transposed in self._weights():
            to_keras_ = functools.partial(to_keras, transposed=transposed)
            back = functools.partial(from_keras, transposed=transposed)
            golden.assign(f"param/D/{name}", variable, to_keras_, back)
        if "param/D/l_y.sn_u" in golden:
            # The source runs one iteration from its vector, over classes, in evaluation too.
            weight, start = golden["param/D/l_y.weight"], golden["param/D/l_y.sn_u"][0]
            v = start @ weight
            self._projection.u.assign(v / np.linalg.norm(v))

    @property
    def _last(self) -> str:
        return _last_dense(self._golden).removeprefix("param/D/")

    @property
    def _dense(self) -> NormalizedDense:
        return _logit_layers(self._network)[0]

    @property
    def _projection(self) -> NormalizedDense:
        return _logit_layers(self._network)[1]

    def convolutions(self) -> Iterator[tuple[str, SpectralConv2D]]:
        """Yields the names in the file and the convolutions."""
        names = {n.rpartition(".")[0] for n in self._golden.names("param/D/block")}
        for name in sorted(names):
            number, _, part = name.partition(".")
            ours = {"c1": "conv1", "c2": "conv2", "c_sc": "shortcut"}[part]
            yield f"block{name}", self._network.get_layer(f"block{int(number) - 1}_{ours}")

    def compare(self, start: str, tape: tf.GradientTape, loss: tf.Tensor) -> None:
        """Compares the gradients of a loss."""
        weights = list(self._weights())
        gradients = tape.gradient(loss, [variable.value for _, variable, _ in weights])
        for (name, _, transposed), gradient in zip(weights, gradients, strict=True):
            back = from_keras(gradient.numpy(), transposed=transposed)
            self._golden.compare(start + name, back, GRADIENT)

    def compare_singular_values(self) -> None:
        """Compares the values that kernels are divided by."""
        named = [*self.convolutions(), (self._last.partition(".")[0], self._dense)]
        if "param/D/l_y.sn_u" in self._golden:
            named.append(("l_y", self._projection))
        for name, layer in named:
            sigma = np.linalg.norm(layer.kernel) / np.linalg.norm(layer.normalized_kernel())
            self._golden.compare(f"sn/sigma/{name}", np.float32(sigma))

    def iterate(self) -> None:
        """Runs one power iteration, and compares its vectors."""
        start = "sn/after_one_train_forward/"
        for name, layer in self.convolutions():
            SpectralNorms([layer]).iterate()
            v = layer.v.numpy()
            u = layer.kernel.numpy().reshape(-1, layer.units).T @ v
            v = v.reshape(-1, layer.kernel.shape[2]).T.ravel()
            self._golden.compare(f"{start}{name}.weight_v", v)
            self._golden.compare(f"{start}{name}.weight_u", u / np.linalg.norm(u))
        if "param/D/l_y.sn_u" in self._golden:
            # `__init__` has run this layer's iteration.
            u = self._projection.kernel.numpy() @ self._projection.u.numpy()
            sigma = np.linalg.norm(u)
            self._golden.compare(f"{start}l_y.sn_u", (u / sigma)[None])
            self._golden.compare(f"{start}l_y.sn_sigma", np.array([sigma]))

    def _weights(self) -> Iterator[tuple[str, keras.Variable, bool]]:
        """Yields golden name, variable and whether a dense weight is transposed."""
        for name, layer in self.convolutions():
            yield f"{name}.weight_orig", layer.kernel, True
            yield f"{name}.bias", layer.bias, True
        yield self._last, self._dense.kernel, True
        yield f"{self._last.partition('.')[0]}.bias", self._dense.bias, True
        if "param/D/l_y.weight" in self._golden:
            yield "l_y.weight", self._projection.kernel, False
