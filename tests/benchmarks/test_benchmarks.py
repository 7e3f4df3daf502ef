import importlib.util

import keras
import numpy as np
import pytest

from benchmarks import training
from benchmarks.harness import Measured
from benchmarks.reference import keras_loops
from benchmarks.trained import images
from trainer import recipes
from trainer.recipes.networks import build_networks

SHAPES = [(name, *shape) for name in keras_loops.PLAIN for shape in ((28, 1), (32, 3))]
with_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")


@pytest.fixture(autouse=True)
def float32_policy():
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


def values(network):
    return [weight.numpy() for weight in network.variables]


def same(before, after):
    return all((a == b).all() for a, b in zip(before, after, strict=True))


def shapes(network):
    return sorted(tuple(w.shape) for w in network.variables if w.dtype == "float32")


@pytest.mark.parametrize(("name", "side", "channels"), SHAPES)
def test_plain_networks_have_the_weight_shapes_of_the_recipes(name, side, channels):
    config, data = recipes.resolve(dict(recipe=name)), images(10, side, channels)
    plain = keras_loops.networks_of(config, data)
    for network, reference in zip(build_networks(config, data.shape), plain, strict=True):
        assert shapes(network) == shapes(reference)


@with_torch
@pytest.mark.parametrize("row", training.RECIPES)
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3)])
def test_torch_networks_have_the_weight_sizes_of_the_recipes(row, side, channels):
    from benchmarks.reference import torch_networks

    if row == "dcgan-studiogan" and side != 32:
        return
    config, data = recipes.resolve(training.settings_of(row)), images(10, side, channels)
    torch_model = torch_networks.build(config, side, channels, data.shape.classes)
    for network, reference in zip(build_networks(config, data.shape), torch_model, strict=True):
        sizes = sorted(int(np.prod(weight.shape)) for weight in network.trainable_variables)
        assert sizes == sorted(weight.numel() for weight in reference.parameters())


@pytest.mark.parametrize("name", keras_loops.FROZEN)
def test_frozen_discriminator_changes_only_in_its_own_updates(name):
    config = recipes.resolve(dict(recipe=name, batch_size=4))
    loop = keras_loops.make(config, images(20, 28, 1), jit_compile=False)  # starts faster
    assert np.isfinite(loop.step()).all()
    d, g = values(loop.discriminator), values(loop.generator)
    loop.adversarial.train_on_batch(
        loop._inputs(loop._noise(), np.zeros(4, np.int32)), np.ones([4, 1])
    )
    assert same(d, values(loop.discriminator))
    assert not same(g, values(loop.generator))
    g = values(loop.generator)
    loop._train_d(*loop._reals(), loop._noise())
    assert not same(d, values(loop.discriminator))
    assert same(g, values(loop.generator))


@pytest.mark.parametrize("name", ["mlp", "dcgan-kstep", "dcgan"])
def test_tape_loop_trains_both_networks(name):
    loop = keras_loops.make(recipes.resolve(dict(recipe=name, batch_size=4)), images(20, 28, 1))
    before = [values(network) for network in (loop.generator, loop.discriminator)]
    for _ in range(2):
        assert np.isfinite([float(loss) for loss in loop.step()]).all()
    assert not same(before[0], values(loop.generator))
    assert not same(before[1], values(loop.discriminator))


@with_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", training.RECIPES)
def test_torch_loop_trains_both_networks(name, dtype):
    from benchmarks.reference import torch_loops

    shape = training.side_and_channels(name, 0, 0)
    config = recipes.resolve(dict(training.settings_of(name), batch_size=4))
    loop = torch_loops.Loop(config, shape["side"], shape["channels"], 20, dtype=dtype)
    before = [[w.detach().clone() for w in x] for x in (loop.d_weights, loop.g_weights)]
    assert np.isfinite([float(loss) for loss in loop.step()]).all()
    for old, new in zip(before, (loop.d_weights, loop.g_weights), strict=True):
        assert any((a != b).any() for a, b in zip(old, new, strict=True))
        assert all(weight.requires_grad for weight in new)


def test_row_contains_the_error_of_a_program_that_was_not_measured():
    ours = Measured((200.0, 300.0, 400.0), {"batch": 64})
    measured = {
        "trainer": ours,
        "tensorflow": Measured((100.0, 100.0, 100.0)),
        "torch": Measured(error="torch is not installed"),
    }
    row = training.row_of("mlp", "float32", measured)
    assert (row["trainer"], row["x_tensorflow"]) == (300.0, 3.0)
    assert (row["torch"], row["x_torch"]) == ("torch is not installed", "")
