"""--init_from other classes and sizes, and --d_freeze_layers."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tests.helpers.runs import TINY_FLAGS, assert_same_run, steps, trajectory, variables
from trainer import recipes
from trainer.config.dataset import ImageShape
from trainer.data import sources
from trainer.errors import CheckpointError, ExitCode, UsageError
from trainer.models import matching
from trainer.models.graph import freeze
from trainer.recipes import files
from trainer.recipes.networks import build_networks
from trainer.run_dir.checkpoints import load_networks
from trainer.run_dir.directory import RunDir
from trainer.training.state import create_state

SMALL = dict(image_size=8, latent_dim=4)


@pytest.fixture
def pictures(tmp_path):
    """Makes a folder of pictures, 8 pixels wide, in the given classes."""

    def make(name: str, *classes: str) -> str:
        pixels = np.random.default_rng(0).integers(0, 255, [len(classes), 8, 8, 8], np.uint8)
        for class_name, images in zip(classes, pixels, strict=True):
            (tmp_path / name / class_name).mkdir(parents=True)
            for number, image in enumerate(images):
                Image.fromarray(image).save(tmp_path / name / class_name / f"{number}.png")
        return str(tmp_path / name)

    return make


@pytest.fixture
def old(tiny, run, pictures, tmp_path):
    """Trains a run of two steps on the classes cat, dog and owl; returns its configuration."""

    def make(**given):
        settings = dict(dataset=pictures("old-data", "cat", "dog", "owl"), **SMALL)
        config = tiny(**{**settings, "length": steps(2), **given}, run_dir=str(tmp_path / "old"))
        run(config)
        return config

    return make


@pytest.fixture
def start(run, tmp_path):
    """Starts a run of no step from another one; returns its output, networks and record."""

    def begin(source, **given):
        folder = tmp_path / "new"
        given = {"length": steps(0), "run_dir": str(folder), "init_from": source.run_dir, **given}
        config = source.replace(**given)
        output = run(config)
        record = json.loads((folder / "initialization.json").read_text())
        return output, networks_of(config), record

    return begin


def networks_of(config, checkpoint=True):
    """The networks of a run, as its newest checkpoint or as its seed has them."""
    data = sources.load(config)
    config = sources.resolve_conditional(config, data)
    state = create_state(config, data.shape, "float32")
    networks = state.networks()
    if checkpoint:
        load_networks(RunDir(Path(config.run_dir)).checkpoints, networks)
    return networks


def values(network):
    return [variable.numpy() for variable in network.variables]


def taken(record, network="generator"):
    """What each layer took over, as [taken over, weights]."""
    return [[layer["taken_over"], layer["weights"]] for layer in record["layers"][network]]


def test_a_failed_start_writes_nothing_and_the_corrected_command_works(trainer, tmp_path):
    small = ["train", "--devices=cpu", "--recipe=mlp-small", "--image_size=8", *TINY_FLAGS]
    assert trainer(*small, "--steps=1", "--run_dir=old").returncode == 0
    new = [*small, "--steps=2", "--run_dir=new", "--init_from=old"]
    answer = trainer(*new, "--latent_dim=7", "--g_width=0.1")
    assert answer.returncode == ExitCode.USAGE == 64, answer.stdout
    (line,) = [line for line in answer.stderr.splitlines() if "error: " in line]
    assert "--init_from=old" in line
    assert "(latent_dim: 100 -> 7; g_width: 0.05 -> 0.1)" in line
    assert "Use --latent_dim=100 --g_width=0.05, or leave out --init_from." in line
    assert "Traceback" not in answer.stderr
    assert "damaged" not in answer.stdout + answer.stderr
    assert not (tmp_path / "new").exists()
    answer = trainer(*new)
    assert answer.returncode == 0, answer.stderr
    assert "Starting from the networks of old at step 1" in answer.stdout
    assert "Generator: all " in answer.stdout
    resumed = trainer(*new[:-1], "--steps=3")  # the source is not needed any more
    assert resumed.returncode == 0, resumed.stderr
    assert "Starting from" not in resumed.stdout


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (dict(networks="dcgan"), "networks: cgan -> dcgan"),
        (dict(d_width=0.2), "d_width: 0.05 -> 0.2"),
        (dict(g_conditioning="concat"), "g_conditioning: multiply -> concat"),
        (dict(g_norm="none"), "g_norm: batch -> none"),
        (dict(g_upsampling="resize"), "g_upsampling: transposed -> resize"),
        (dict(d_weights="spectral"), "d_weights: plain -> spectral"),
        (dict(image_size=12, latent_dim=5), "latent_dim: 4 -> 5"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_named(old, start, tmp_path, given, named):
    source = old(recipe="cgan")
    with pytest.raises(UsageError) as error:
        start(source, **given)
    assert f"({named})" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new" / "config.json").exists()


def test_settings_without_weights_may_differ(old, start):
    source = old(recipe="cgan")
    output, _, record = start(source, d_slope=0.3, g_lr=1e-3)
    assert "Differences from that run: d_slope: 0.01 -> 0.3" in output
    assert record["differences"] == {"d_slope": "0.01 -> 0.3"}
    assert all(part == whole for part, whole in taken(record))


def test_hyperparameters_and_channels_that_do_not_fit_are_named(old, start, tmp_path, monkeypatch):
    recipe = tmp_path / "mygan.py"
    recipe.write_text(
        "from trainer.recipes.builtin import mlp\nfrom trainer.recipes.recipe import Recipe\n"
        "RECIPE = Recipe(source='s', architecture='a', updates='u', hyperparameters=dict(f=1.0))\n"
        "def scaled(c): return c.replace(g_width=c.g_width * c.hyperparameter_values['f'])\n"
        "def generator(c, shape): return mlp.generator(scaled(c), shape)\n"
        "discriminator = mlp.discriminator\n"
    )
    source = old(recipe=str(recipe))
    with pytest.raises(UsageError, match=r"\(hyperparameters: f=1.0 -> f=2.0\)"):
        start(source, hyperparameters="f=2.0")
    x = np.zeros([9, 8, 8, 3], np.uint8)
    np.savez(tmp_path / "rgb.npz", x=x, y=np.arange(9) % 3)
    with pytest.raises(UsageError) as error:
        start(source, dataset=str(tmp_path / "rgb.npz"))
    assert str(error.value).endswith(
        "(channels: 1 -> 3). That run draws grayscale images and cannot be fine-tuned to colour "
        "images. Use --channels=1, name a run on colour images, or leave out --init_from."
    )
    # Another recipe whose weights have the same shapes; the old one is loaded from its copy.
    monkeypatch.setattr(files, "_loaded", {})
    _, _, record = start(source, recipe="mlp", networks="mlp", hyperparameters="")
    assert record["differences"]["networks"].endswith("-> mlp")
    assert all(part == whole for part, whole in taken(record))


def test_colour_pictures_fit_a_grayscale_run_as_documented(old, start, tmp_path, monkeypatch):
    source = old()
    for number in range(9):
        path = tmp_path / "my-pictures" / "cat" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), (9 * number, 0, 200), np.uint8)).save(path)
    page = (Path(__file__).parents[2] / "docs/fine-tuning.md").read_text(encoding="utf-8")
    (channels,) = re.findall(r"`--channels=(\d)` converts the pictures to grayscale", page)
    monkeypatch.chdir(tmp_path)
    start(source, dataset="./my-pictures", channels=channels)


def test_a_damaged_source_is_no_mismatch(old, start, tmp_path):
    source = old(recipe="cgan")
    for path in (tmp_path / "old" / "checkpoints").glob("*.data*"):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"--init_from=.*damaged") as error:
        start(source)
    assert error.value.exit_code == ExitCode.CHECKPOINT == 73
    with pytest.raises(UsageError, match="nowhere is not a run directory"):
        start(source, init_from=str(tmp_path / "nowhere"))


def by_name(layer, name):
    return next(weight.numpy() for weight in layer.weights if weight.name == name)


def class_rows_only(one, got):
    """Whether kernels are [3 classes, F] and [4 classes, F]: F may be 3, too."""
    shapes = [by_name(layer, layer.weights[0].name).shape for layer in (one, got)]
    return [shape[0] for shape in shapes] == [3, 4]


def test_other_classes_begin_anew_and_all_else_is_taken_over(old, start, pictures):
    source = old()  # conditional batch norm, projection, spectral norm, EMA
    other = pictures("new-data", "ant", "bee", "elk", "fox")
    output, new, record = start(source, dataset=other, seed=5)
    assert "classes: 3 -> 4" in output
    assert "Classes taken over by name: none" in output
    before = networks_of(source)
    fresh = networks_of(source.replace(dataset=other, seed=5), checkpoint=False)
    for name in ("generator", "discriminator", "average"):
        layers = [
            [layer for layer in networks[name].layers if layer.weights]
            for networks in (before, new, fresh)
        ]
        anew = 0
        for one, got, initial in zip(*layers, strict=True):
            for weight in (w.name for w in got.weights):
                b, g, f = (by_name(layer, weight) for layer in (one, got, initial))
                if class_rows_only(one, got):
                    np.testing.assert_array_equal(g, f)
                    anew += g.size
                elif b.shape != g.shape:  # latents and one-hot labels
                    np.testing.assert_array_equal(g[:4], b[:4])
                    np.testing.assert_array_equal(g[4:], f[4:])
                    anew += g[4:].size
                else:
                    np.testing.assert_array_equal(g, b)
                    assert g.ndim < 2 or not np.array_equal(g, f)
        assert anew
        parts = np.array(taken(record, name))
        assert parts[:, 1].sum() - parts[:, 0].sum() == anew
        assert f"{anew:,} weights begin anew: " in output


def test_rows_follow_the_names_of_classes(old, start, pictures):
    source = old()
    output, new, record = start(source, dataset=pictures("new-data", "dog", "elk", "owl", "zoo"))
    assert "Classes taken over by name: dog, owl\n" in output
    assert record["classes"] == ["dog", "owl"]
    before = networks_of(source)
    checked = 0
    for one, got in zip(before["generator"].layers, new["generator"].layers, strict=True):
        for b, g in zip(one.get_weights(), got.get_weights(), strict=True):
            if b.shape != g.shape:
                rows = b[-3:], g[-4:]
                np.testing.assert_array_equal(rows[1][[0, 2]], rows[0][[1, 2]])
                checked += 1
    assert checked >= 3


def test_classes_in_another_order_keep_their_rows(old, start):
    source = old(recipe="cgan")
    path = Path(source.run_dir) / "data.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "class_names": ["owl", "cat", "dog"]}))
    output, new, record = start(source)
    assert "class_names: owl, cat, dog -> cat, dog, owl" in output
    assert all(part == whole for part, whole in taken(record))
    for name in ("generator", "discriminator"):
        before, after = values(networks_of(source)[name]), values(new[name])
        np.testing.assert_array_equal(after[0], before[0][[1, 2, 0]])
        for b, a in zip(before[1:], after[1:], strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_average_begins_at_the_generator_of_a_run_without_one(old, start):
    source = old(ema_half_life_kimg=0.0)
    _, new, record = start(source, ema_half_life_kimg=10.0)
    assert taken(record, "average") == taken(record, "generator")
    before = values(networks_of(source)["generator"])
    for b, average in zip(before, values(new["average"]), strict=True):
        np.testing.assert_array_equal(average, b)


@pytest.mark.parametrize("conditional", [False, True])
def test_from_conditional_to_unconditional_and_back(old, start, conditional):
    source = old(conditional=not conditional)
    output, new, _ = start(source, conditional=conditional)
    assert f"conditional: {not conditional} -> {conditional}" in output
    before = networks_of(source)
    for name, first in (("generator", 4), ("discriminator", None), ("average", 4)):
        pairs = [
            [layer for layer in networks[name].layers if "Conv" in type(layer).__name__]
            for networks in (before, new)
        ]
        for one, got in zip(*pairs, strict=True):
            for b, g in zip(one.get_weights(), got.get_weights(), strict=True):
                np.testing.assert_array_equal(g, b)
        if first:
            b, g = (by_name(networks[name], "kernel") for networks in (before, new))
            assert abs(len(b) - len(g)) == 3
            np.testing.assert_array_equal(g[:first], b[:first])
    statistics = [
        [weight.numpy() for weight in networks["generator"].weights if "moving" in weight.name]
        for networks in (before, new)
    ]
    for b, g in zip(*statistics, strict=True):
        np.testing.assert_array_equal(g, b)
    assert len(statistics[0]) >= 2


@pytest.mark.parametrize("sizes", [(28, 32), (32, 64), (64, 32)])
def test_layers_match_from_the_image(sizes):
    """The kernels next to the image are the same at every size, so they match each other."""
    config = recipes.resolve(dict(recipe="dcgan", conditional=True))
    old, new = (build_networks(config, ImageShape.square(size, 3, 10)) for size in sizes)
    for k, image_first in ((0, False), (1, True)):
        layers = [matching.weight_layers(pair[k]) for pair in (old, new)]
        pairs = matching.match(*layers, image_first=image_first)
        # Positions of convolutions are counted from the image.
        positions = []
        for found in layers:
            convs = [i for i, one in enumerate(found) if "Conv" in type(one.layer).__name__]
            positions.append({i: n for n, i in enumerate(convs if image_first else convs[::-1])})
        matched = [
            (positions[0][one], positions[1][other])
            for other, one in pairs.items()
            if other in positions[1]
        ]
        assert len(matched) >= 2
        assert all(one == other for one, other in matched)
        order = [pairs[other] for other in sorted(pairs) if layers[1][other].on_path]
        assert order == sorted(order)


@pytest.mark.parametrize(("image_first", "expected"), [(True, {0: 0}), (False, {1: 0})])
def test_of_equal_layers_the_one_nearest_to_the_image_matches(image_first, expected):
    old, new = (
        keras.Sequential([keras.Input([4]), *(keras.layers.Dense(4) for _ in range(count))])
        for count in (1, 2)
    )
    layers = [matching.weight_layers(network) for network in (old, new)]
    assert matching.match(*layers, image_first=image_first) == expected


def test_another_image_size(tiny, run, start, tmp_path):
    source = tiny(length=steps(2), run_dir=str(tmp_path / "old"), g_width=0.5, latent_dim=8)
    run(source)
    output, new, record = start(source, image_size=32)
    assert "Differences from that run: image_size: 28 -> 32" in output
    assert "Discriminator: all " in output
    before = networks_of(source)
    last = [n["generator"].layers[-2].get_weights() for n in (before, new)]
    for b, g in zip(*last, strict=True):
        np.testing.assert_array_equal(g, b)
    totals = [np.sum(taken(record, name), 0) for name in ("generator", "average")]
    (share,) = {part / whole for part, whole in totals}
    assert 0.1 < share < 0.5
    assert f"({int(100 * share)}%) are taken over. " in output
    wanted = r"only \d\.\d% of the weights of the generator fit.*image_size: 28 -> 64"
    with pytest.raises(UsageError, match=wanted):
        start(source, image_size=64, run_dir=str(tmp_path / "far"))
    assert not (tmp_path / "far" / "config.json").exists()


def test_two_replicas_take_over_the_same(old, start, pictures, tmp_path):
    source = old()
    other = dict(dataset=pictures("new-data", "cat", "fox"), seed=1)
    start(source, **other)
    start(source, **other, devices="cpu:2", run_dir=str(tmp_path / "two"), length=steps(0))
    one, two = variables(tmp_path / "new"), variables(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value, err_msg=name)


def frozen_and_trained(network):
    """The weights of the discriminator that are frozen, and those that are trained."""
    weighted = [layer for layer in network.layers if layer.weights]
    frozen = [w for layer in weighted if not layer.trainable for w in layer.weights]
    learned = [w for w in frozen if w.name in ("kernel", "bias", "gamma", "beta", "length")]
    return [w.numpy() for w in learned], [w.numpy() for w in network.trainable_variables]


@pytest.mark.parametrize(
    "given",
    [
        dict(recipe="dcgan"),
        dict(recipe="dcgan", devices="cpu:2"),
        dict(recipe="dcgan", precision="float16", devices="cpu:2"),
        dict(recipe="dcgan", precision="bfloat16", d_weights="weight", d_norm="batch"),
        dict(recipe="dcgan", update_rule="joint-simultaneous", optimizer="sgd"),
        dict(recipe="cgan", d_clip=0.001),
        dict(recipe="mlp-small", optimizer="rmsprop", update_rule="separate", gradient_penalty=1.0),
    ],
    ids=str,
)
def test_frozen_layers_do_not_change_at_all(tiny, given):
    config = tiny(init_from="old", d_freeze_layers=2, **given)
    metrics, state = trajectory(config)
    assert np.isfinite(metrics).all()
    began = create_state(config, sources.load(config).shape, "float32").discriminator
    count = 4  # two kernels and two biases
    count += 2 * (config.d_norm == "batch")  # the first layer has no norm
    count += 2 * (config.d_weights == "weight")
    before, after = (frozen_and_trained(network) for network in (began, state.discriminator))
    assert len(before[0]) == count
    for old_value, new_value in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(new_value, old_value)
    trained = [pair for pair in zip(before[1], after[1], strict=True) if pair[0].ndim > 1]
    assert trained  # a bias may see gradients of reals and fakes that cancel
    for old_value, new_value in trained:
        assert not np.array_equal(new_value, old_value)
    shapes = [v.shape for v in state.d.optimizer.variables]
    unfrozen = create_state(
        config.replace(d_freeze_layers=0), sources.load(config).shape, "float32"
    )
    assert len(shapes) < len(unfrozen.d.optimizer.variables)


def test_the_norm_of_a_frozen_kernel_becomes_exact(tiny):
    config = tiny(recipe="dcgan", init_from="old", d_freeze_layers=1)
    layer = next(x for x in trajectory(config, 40)[1].discriminator.layers if x.weights)
    assert not layer.trainable
    norm = np.linalg.norm(layer.normalized_kernel().numpy().reshape(-1, layer.units), 2)
    assert norm == pytest.approx(1.0, abs=1e-3)


def test_class_embeddings_at_the_image_are_trained(tiny):
    """A new class would keep random values if the embedding before the image were frozen."""
    config = tiny(recipe="cgan")
    _, discriminator = build_networks(config, ImageShape.square(8, 1, 3))
    freeze(discriminator, 2)
    layers = [layer for layer in discriminator.layers if layer.weights]
    assert [layer.trainable for layer in layers] == [True, False, False, False, True, True, True]
    assert layers[0].kernel.shape == (3, 64)


def test_a_run_with_frozen_layers_resumes_bit_for_bit(old, start, pictures, run, tmp_path):
    source = old()
    given = dict(
        dataset=pictures("new-data", "cat", "fox"), d_freeze_layers=1, log_every_steps=1,
        sample_every=steps(1),
    )  # fmt: skip
    output, _, record = start(source, **given, run_dir=str(tmp_path / "new"), length=steps(6))
    (frozen,) = record["frozen"]
    assert f"Layers of the discriminator that are not trained: {frozen}\n" in output
    halves = source.replace(
        **given, init_from=source.run_dir, run_dir=str(tmp_path / "halves"), length=steps(3)
    )
    run(halves)
    run(halves.replace(length=steps(6)))
    assert_same_run(tmp_path / "new", tmp_path / "halves")
    before = networks_of(source)["discriminator"]
    after = networks_of(halves)["discriminator"]
    kernel, bias = ([n.layers[1].get_weights()[k] for n in (before, after)] for k in (0, 1))
    for one, other in (kernel, bias):
        np.testing.assert_array_equal(other, one)


def test_wrong_numbers_of_frozen_layers_are_refused(trainer, old, start, tiny, tmp_path):
    source = old()  # one convolution from 8 to 4 pixels, and the last dense layer
    with pytest.raises(UsageError, match=r"=2 is too large: .* has 2 weight layers.* at most 1\."):
        start(source, d_freeze_layers=2)
    with pytest.raises(UsageError, match="d_freeze_layers=1 keeps weights of another run"):
        tiny(d_freeze_layers=1)
    assert not (tmp_path / "new").exists()
    answer = trainer(
        "train", "--devices=cpu", "--init_from=old", "--d_freeze_layers=9", "--run_dir=new",
        *TINY_FLAGS,
    )  # fmt: skip
    assert answer.returncode == ExitCode.USAGE == 64
    assert "--d_freeze_layers=9 is too large" in answer.stderr


def test_a_layer_that_begins_anew_is_not_frozen(tiny, run, start, tmp_path):
    source = tiny(
        recipe="mlp-small", image_size=8, length=steps(1), run_dir=str(tmp_path / "old"),
        g_width=0.5, d_width=0.5,
    )  # fmt: skip
    run(source)
    with pytest.raises(UsageError, match=r"would freeze the layer dense.*, which begins anew"):
        start(source, image_size=12, d_freeze_layers=1)
    _, _, record = start(source, image_size=12)
    shares = taken(record, "discriminator")
    assert [part == whole for part, whole in shares] == [False, True, True]


def test_fresh_keeps_the_old_run_if_the_networks_do_not_fit(old, tmp_path, trainer):
    source = old(recipe="cgan")
    given = ["--devices=cpu", "--run_dir=run", "--steps=1", *TINY_FLAGS, "--recipe=mlp"]
    assert trainer("train", *given).returncode == 0
    refused = trainer("train", *given, "--fresh", f"--init_from={source.run_dir}")
    assert refused.returncode == ExitCode.USAGE
    assert not list(tmp_path.glob("run.old-*"))
    assert (tmp_path / "run/config.json").exists()
