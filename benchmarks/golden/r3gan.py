"""The networks of `r3gan` with the parameters of a published implementation."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.golden.arrays import GRADIENT, Golden, from_keras, to_keras, zeros_for_none
from trainer import recipes
from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.models import grouped, randomness
from trainer.models.objective import OBJECTIVES
from trainer.recipes.builtin import r3gan
from trainer.training import penalties

BASIS = "MainLayers.0.Layers.0.Basis"
Weights = list[tuple[str, keras.Variable]]  # names in the file, without param/G/ or param/D/


def kinds(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the prefixes of the networks that `compare` can compare."""
    return [n.removesuffix(f"param/G/{BASIS}") for n in arrays if n.endswith(f"param/G/{BASIS}")]


def compare(golden: Golden) -> None:
    """Compares feature maps, images, logits, losses, penalties and gradients."""
    classes = golden.shaped("in/c", "N, classes").shape[1] if "in/c" in golden else 0
    latents, reals = tf.constant(golden.shaped("in/z", "N, latents")), golden.images("in/real")
    labels = [tf.constant(golden.shaped("in/label", "N"))] if classes else []
    shape = ImageShape.square(reals.shape[1], reals.shape[-1], classes)
    config = recipes.resolve(dict(latent_dim=latents.shape[1], conditional=bool(classes)))
    config = config.replace(g_conditioning="embedding", d_conditioning="projection")
    generator, g_weights = _generator(golden, config, shape)
    discriminator, d_weights = _discriminator(golden, config, shape)
    golden.compare("const/resample_kernel", np.outer(*[np.array([1, 3, 3, 1]) / 8] * 2))

    def discriminate(images: tf.Tensor) -> tf.Tensor:
        return discriminator([images, *labels] if labels else images, training=True)

    def generate() -> tf.Tensor:
        return generator([latents, *labels] if labels else latents, training=True)

    fakes = generate()
    golden.compare_images("out/G_images", fakes)
    golden.compare("out/D_fake", discriminate(fakes))
    golden.compare("out/D_real", discriminate(reals))
    _compare_stages(golden, generator, discriminator, [latents, *labels], [reals, *labels])
    with tf.GradientTape() as tape:
        fake_logits, real_logits = discriminate(generate()), discriminate(reals)
        golden.compare("Gstep/relativistic_logit", fake_logits - real_logits)
        losses = OBJECTIVES["relativistic"].g_loss(real_logits, fake_logits)
        golden.compare("Gstep/adv_per_sample", losses, GRADIENT)
        loss = tf.reduce_mean(losses)
    golden.compare("Gstep/total", loss, GRADIENT)
    _compare_gradients(golden, "Gstep/grad/", tape.gradient(loss, _values(g_weights)), g_weights)
    _compare_discriminator(golden, discriminate, reals, fakes, d_weights)


def _compare_discriminator(
    golden: Golden, discriminate: Any, reals: tf.Tensor, fakes: tf.Tensor, weights: Weights
) -> None:
    """Compares the loss of D, its penalties and their gradients."""
    with tf.GradientTape(persistent=True) as tape:
        real_logits, (at_reals,) = penalties.judge(lambda: discriminate(reals), [reals], half=False)
        fake_logits, (at_fakes,) = penalties.judge(lambda: discriminate(fakes), [fakes], half=False)
        golden.compare("Dstep/relativistic_logit", real_logits - fake_logits)
        golden.compare_images("Dstep/dDreal_dimage", at_reals, GRADIENT)
        losses = OBJECTIVES["relativistic"].d_loss(real_logits, fake_logits)
        golden.compare("Dstep/adv_per_sample", losses, GRADIENT)
        loss = tf.reduce_mean(losses)
        golden.compare("Dstep/adv_mean", loss, GRADIENT)
        means = []
        for penalty in penalties.PENALTIES:
            if penalty.images == "between":
                continue
            # The file's are without the factor 1 / 2 that belongs to the weight.
            each = 2.0 * penalty.of({"reals": at_reals, "fakes": at_fakes}[penalty.images])
            golden.compare(f"Dstep/{penalty.setting}_per_sample", each, GRADIENT)
            means.append(tf.reduce_mean(each))
            golden.compare(f"Dstep/{penalty.setting}_mean", means[-1], GRADIENT)
        total = loss + 0.5 * float(golden["in/gamma"]) * tf.add_n(means)
    golden.compare("Dstep/total", total, GRADIENT)
    values = _values(weights)
    for start, target in (
        ("Dstep/grad/", total),
        ("Dstep/grad_r1_mean_only/", means[0]),
        ("Dstep/grad_r2_mean_only/", means[1]),
    ):
        _compare_gradients(golden, start, tape.gradient(target, values), weights)


def _compare_stages(
    golden: Golden,
    generator: keras.Model,
    discriminator: keras.Model,
    g_inputs: Sequence[Any],
    d_inputs: Sequence[Any],
) -> None:
    """Compares the features after each stage."""
    last = len({name.split(".")[1] for name in golden.names("param/D/MainLayers")}) - 1
    for network, start, inputs in (
        (generator, "act/G", g_inputs), (discriminator, "act/D_real", d_inputs),
    ):  # fmt: skip
        for stage in range(last + 1):
            block = _last_of(network, stage if start == "act/G" else last - stage)
            part = keras.Model(network.inputs, network.get_layer(block).output)
            features = part(inputs if len(inputs) > 1 else inputs[0])
            name = f"{start}.stage{stage}"
            if len(features.shape) == 4:
                golden.compare_images(name, features)
            elif name in golden:
                golden.compare(name, features[: len(golden[name])])


def _last_of(network: keras.Model, stage: int) -> str:
    """Returns the name of the layer that ends a stage."""
    names = [layer.name for layer in network.layers]
    if network.name == "generator":
        ends = [name for name in names if re.fullmatch(rf"stage{stage}_block\d+_sum", name)]
        return ends[-1]
    if stage == 0:
        return "head"
    width = f"stage{stage}_width"
    return width if width in names else f"stage{stage}_down"


def _form(golden: Golden, start: str, network: str) -> grouped.Stages:
    """Returns the stages of a network of the file, whose number of blocks must be equal."""
    names = golden.names(f"param/{network}/")
    inner = [n for n in names if n.endswith("LinearLayer2.Layer.weight")]
    by_stage: dict[int, list[str]] = {}
    for name in inner:
        by_stage.setdefault(int(name.split(".")[1]), []).append(name)
    widths = []
    for stage in sorted(by_stage):
        first = by_stage[stage][0].replace("LinearLayer2", "LinearLayer3")
        widths.append(golden[f"param/{network}/{first}"].shape[0])
    kernel = golden[f"param/{network}/{inner[0]}"]
    expanded = golden[f"param/{network}/{inner[0].replace('LinearLayer2', 'LinearLayer3')}"]
    ordered = widths if network == "G" else widths[::-1]
    return grouped.Stages(
        sides=golden[start].shape[-2:],
        widths=tuple(ordered),
        blocks=len(next(iter(by_stage.values()))),
        expansion=expanded.shape[1] // expanded.shape[0],
        group_size=kernel.shape[1],
    )


def _generator(golden: Golden, config: Config, shape: ImageShape) -> tuple[keras.Model, Weights]:
    form = _form(golden, f"param/G/{BASIS}", "G")
    with randomness.initial_values(0, "generator"):
        network = r3gan.build_generator(config, shape, form)
    layer = network.get_layer
    weights: Weights = [
        (BASIS, layer("basis").kernel),
        ("MainLayers.0.Layers.0.LinearLayer.weight", layer("from_latents").kernel),
        ("AggregationLayer.Layer.weight", layer("to_image").kernel),
    ]
    if shape.classes:
        on_labels = [x for x in network.layers if isinstance(x, keras.layers.Dense)]
        (embedding,) = (x for x in on_labels if x.name != "from_latents")
        weights.append(("EmbeddingLayer.weight", embedding.kernel))
    for stage in range(len(form.widths)):
        if f"stage{stage}_width" in (x.name for x in network.layers):
            name = f"MainLayers.{stage}.Layers.0.LinearLayer.Layer.weight"
            weights.append((name, layer(f"stage{stage}_width").kernel))
        for block in range(form.blocks):
            start = f"MainLayers.{stage}.Layers.{block + 1}"
            weights += _block(network, start, f"stage{stage}_block{block}")
    return network, _load(golden, "param/G/", weights)


def _discriminator(
    golden: Golden, config: Config, shape: ImageShape
) -> tuple[keras.Model, Weights]:
    (basis,) = (n for n in golden.names("param/D/") if n.endswith("Basis.weight"))
    form = _form(golden, f"param/D/{basis}", "D")
    with randomness.initial_values(0, "discriminator"):
        network = r3gan.build_discriminator(config, shape, form)
    layer = network.get_layer
    weights: Weights = [
        ("ExtractionLayer.Layer.weight", layer("from_image").kernel),
        (basis, layer("basis").kernel),
        (basis.replace("Basis", "LinearLayer"), layer("head").kernel),
    ]
    if shape.classes:
        weights.append(("EmbeddingLayer.weight", layer("label_embedding").kernel))
    last = len(form.widths) - 1
    for stage in range(last + 1):
        ours = last - stage
        for block in range(form.blocks):
            start = f"MainLayers.{stage}.Layers.{block}"
            weights += _block(network, start, f"stage{ours}_block{block}")
        if f"stage{ours}_width" in (x.name for x in network.layers):
            name = f"MainLayers.{stage}.Layers.{form.blocks}.LinearLayer.Layer.weight"
            weights.append((name, layer(f"stage{ours}_width").kernel))
    return network, _load(golden, "param/D/", weights)


def _block(network: keras.Model, start: str, ours: str) -> Iterator[tuple[str, keras.Variable]]:
    for number, name in ((1, "conv1"), (2, "conv3"), (3, "out")):
        layer = network.get_layer(f"{ours}_{name}")
        yield f"{start}.LinearLayer{number}.Layer.weight", layer.kernel
        if number < 3:
            yield f"{start}.NonLinearity{number}.Bias", layer.bias


def _load(golden: Golden, start: str, weights: Weights) -> Weights:
    for name, variable in weights:
        is_basis = "Basis" in name
        to_ours, back = (_basis, _from_basis) if is_basis else (to_keras, from_keras)
        golden.assign(start + name, variable, to_ours, back)
    return weights


def _basis(weight: np.ndarray) -> np.ndarray:
    """Converts [C, H, W], or [C, 1, H, W] of a depthwise convolution, to [H, W, C]."""
    return weight.reshape(len(weight), *weight.shape[-2:]).transpose(1, 2, 0)


def _from_basis(weight: Any) -> np.ndarray:
    return np.asarray(weight).transpose(2, 0, 1)


def _values(weights: Weights) -> list[tf.Variable]:
    return [variable.value for _, variable in weights]


def _compare_gradients(
    golden: Golden, start: str, gradients: Sequence[Any], weights: Weights
) -> None:
    variables = [variable for _, variable in weights]
    gradients = zeros_for_none(gradients, variables)
    for (name, _), gradient in zip(weights, gradients, strict=True):
        if start + name in golden:
            back = from_keras(gradient)
            if "Basis" in name:
                back = _from_basis(gradient).reshape(golden[start + name].shape)
            golden.compare(start + name, back, GRADIENT)
