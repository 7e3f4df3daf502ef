"""Recipe files: training, the copy in the run directory, and invalid files."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import trainer as trainer_package
from tests.helpers.runs import records
from trainer import recipes
from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.errors import CheckpointError, ExitCode, UsageError
from trainer.recipes import files
from trainer.recipes.networks import build_networks

RECIPE = '''
"""A small multi-layer perceptron."""

import keras

from trainer.models import layers
from trainer.recipes.recipe import Recipe

RECIPE = Recipe(
    source="this test",
    architecture="Fully connected layers.",
    updates="One update of each network.",
    networks=dict(latent_dim=6),
    loop=dict(batch_size=8, length="4 steps", loss="least_squares"),
    hyperparameters=dict(units=12, slope=0.25, norm=True, kind="plain"),
)


def generator(config, shape):
    own = config.hyperparameter_values
    inputs, x, onehot = layers.generator_inputs(config, shape)
    x = keras.layers.LeakyReLU(own["slope"])(layers.g_dense(x, config, own["units"]))
    if own["norm"]:
        x = layers.g_norm(x, config, onehot)
    x = layers.g_dense(x, config, shape.size**2 * shape.channels)
    x = keras.layers.Reshape([shape.size, shape.size, shape.channels])(x)
    return keras.Model(inputs, layers.image_output(x, config), name="generator")


def discriminator(config, shape):
    inputs, x, onehot = layers.discriminator_inputs(config, shape)
    x = layers.dense(keras.layers.Flatten()(x), config, 4, first=True)
    x = layers.d_activation(x, config)
    return keras.Model(inputs, layers.logit(x, config, onehot), name="discriminator")
'''
TRAIN = ["train", "--devices=cpu", "--sample_grid=2", "--image_size=8"]


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "mygan.py"
    path.write_text(RECIPE)
    return path


def test_run_of_a_recipe_file_continues_from_its_copy(trainer, recipe_file, tmp_path):
    first = trainer(*TRAIN, "--recipe=mygan.py", "--hyperparameters=units=7,norm=false")
    assert first.returncode == 0, first.stderr
    assert "Recipe mygan.py on digits: " in first.stdout
    run_dir = tmp_path / "runs" / "mygan-digits"
    config = json.loads((run_dir / "config.json").read_text())
    digest = hashlib.sha256(recipe_file.read_bytes()).hexdigest()[:16]
    assert config["recipe"] == config["networks"] == f"mygan-{digest}.py"
    assert (config["latent_dim"], config["loss"]) == (6, "least_squares")
    assert config["hyperparameters"] == "units=7,slope=0.25,norm=false,kind=plain"
    copy = run_dir / "recipes" / config["recipe"]
    assert copy.read_bytes() == recipe_file.read_bytes()

    # Without the original, the copy suffices to resume, generate, export and evaluate.
    recipe_file.unlink()
    resumed = trainer(*TRAIN[:2], f"--run_dir={run_dir}", "--steps=6")
    assert resumed.returncode == 0, resumed.stderr
    assert [line["step"] for line in records(run_dir)][-1] == 6
    on_cpu = [f"--run_dir={run_dir}", "--devices=cpu"]
    for command in (["generate", "--num=4"], ["export"], ["evaluate", "--num_samples=100"]):
        result = trainer(*command, *on_cpu)
        assert result.returncode == 0, result.stderr


def test_changed_or_missing_recipe_files_are_checkpoint_errors(trainer, recipe_file, tmp_path):
    assert trainer(*TRAIN, "--recipe=mygan.py").returncode == 0
    run_dir = tmp_path / "runs" / "mygan-digits"
    recipe_file.write_text(RECIPE.replace("slope=0.25", "slope=0.5"))
    changed = trainer(*TRAIN, "--recipe=mygan.py", "--steps=6")
    assert changed.returncode == ExitCode.CHECKPOINT
    assert changed.stderr == (
        "error: mygan.py has changed since the run in runs/mygan-digits was started. To resume the "
        "run with its copy of the file, use --run_dir=runs/mygan-digits without --recipe. To train "
        "the changed file, choose another --run_dir, or use --fresh.\n"
    )
    recipe_file.rename(tmp_path / "other.py")
    other = trainer(*TRAIN, "--recipe=other.py", f"--run_dir={run_dir}")
    assert other.returncode == ExitCode.CHECKPOINT
    assert "other settings (recipe: mygan.py -> other.py)" in other.stderr
    (copy,) = (run_dir / "recipes").iterdir()
    copy.write_text(RECIPE + "\n")
    for command in ("train --steps=6", "generate"):
        damaged = trainer(*command.split(), "--devices=cpu", f"--run_dir={run_dir}")
        assert damaged.returncode == ExitCode.CHECKPOINT
        assert f"{copy.name}, the recipe of this run, was changed" in damaged.stderr
    # The status command does not need the networks, so it runs no code from the run directory.
    assert trainer("status", f"--run_dir={run_dir}").returncode == 0
    shutil.rmtree(copy.parent)
    missing = trainer("generate", "--devices=cpu", f"--run_dir={run_dir}")
    assert missing.returncode == ExitCode.CHECKPOINT
    assert "cannot be read" in missing.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("import keras", "import keras\nimport no_such_module", "line 5: ModuleNotFoundError"),
        ("RECIPE = Recipe(", "RECIPE = = Recipe(", "line 9: SyntaxError"),
        ("RECIPE = Recipe(", "OTHER = Recipe(", "does not define RECIPE"),
        ("def generator", "def generate", "does not define the function generator"),
        ("batch_size=8", "batchsize=8", "'batchsize' is not a setting. Did you mean batch_size?"),
        ("batch_size=8", "batch_size=0", "--batch_size=0 is too small"),
        ("units=12", "units=[12]", "hyper-parameter 'units' must have"),
        ('kind="plain"', 'kind="7"', "the default '7' of 'kind' reads as a number"),
        ('own["slope"]', 'own["slop"]', "generator(config, shape) failed (line 22: KeyError"),
        ("[shape.size, shape.size, shape", "[shape.size**2, 1, shape", "must return a keras.Model"),
        (
            "[shape.size, shape.size, shape",
            "[shape.size, 9, shape",
            "failed (line 26: ValueError: The total size of the tensor must be unchanged. "
            "Received: input_shape=(64,), target_shape=(8, 9, 1)).",
        ),
        (
            "layers.discriminator_inputs(config, shape)\n",
            "layers.discriminator_inputs(config, type(shape).square(16, 1, 10))\n",
            "first input of the discriminator must have the shape (None, 8, 8, 1), not (None, 16,",
        ),
        ('name="discriminator")', 'name="discriminator"), None', "(None,), not tuple"),
    ],
)
def test_invalid_recipe_files_are_one_line_usage_errors(recipe_file, old, new, message):
    assert old in RECIPE
    recipe_file.write_text(RECIPE.replace(old, new))
    with pytest.raises(UsageError) as error:
        build_networks(recipes.resolve(dict(recipe=str(recipe_file))), ImageShape.square(8, 1, 10))
    assert str(error.value).startswith(f"--recipe={recipe_file}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_invalid_recipe_file_creates_no_run_directory(trainer, recipe_file):
    recipe_file.write_text(RECIPE.replace('own["slope"]', 'own["slop"]'))
    result = trainer(*TRAIN, "--recipe=mygan.py")
    assert result.returncode == ExitCode.USAGE
    assert result.stderr.startswith("error: --recipe=mygan.py: generator(config, shape) failed")
    assert result.stderr.count("\n") == 1
    assert not (recipe_file.parent / "runs").exists()


def test_missing_recipe_files_are_errors():
    with pytest.raises(UsageError, match=r"--recipe=nowhere/x\.py cannot be read \(No such file"):
        recipes.resolve(dict(recipe="nowhere/x.py"))
    config = recipes.resolve({}).replace(recipe="x-0123456789abcdef.py")
    with pytest.raises(CheckpointError, match="cannot be read"):
        files.load_copies(Path("nowhere"), config)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("units", "--hyperparameters=units is not valid at 'units'"),
        ("unit=3", "--hyperparameters=unit=3: 'unit' is not known. Did you mean units?"),
        ("units=3.5", "units=3.5 must be of type int, such as units=12"),
        ("norm=1", "norm=1 must be of type bool, such as norm=true"),
    ],
)
def test_invalid_hyperparameters_are_usage_errors(recipe_file, given, message):
    with pytest.raises(UsageError) as error:
        recipes.resolve(dict(recipe=str(recipe_file), hyperparameters=given))
    assert message in str(error.value)


def test_hyperparameters_of_a_resumed_run_are_kept(recipe_file):
    given = dict(recipe=str(recipe_file), hyperparameters="slope=1,kind=wide")
    stored = recipes.resolve(given)
    assert stored.hyperparameters == "units=12,slope=1.0,norm=true,kind=wide"
    restored = Config.from_json(stored.to_json(), "config.json")
    assert restored.hyperparameter_values == dict(units=12, slope=1.0, norm=True, kind="wide")
    assert recipes.resolve({}, stored).hyperparameters == stored.hyperparameters
    same = recipes.resolve(dict(hyperparameters="slope=1.0"), stored)
    assert same.hyperparameters == stored.hyperparameters
    other = recipes.resolve(dict(hyperparameters="slope=2"), stored)
    assert other.hyperparameters == "units=12,slope=2.0,norm=true,kind=wide"


def test_hyperparameters_of_a_recipe_without_any_are_a_usage_error():
    with pytest.raises(UsageError, match="the recipe has no hyper-parameters of its own"):
        recipes.resolve(dict(recipe="mlp", hyperparameters="units=3"))


def test_networks_of_a_recipe_file_train_with_another_recipes_loop(recipe_file):
    config = recipes.resolve(dict(recipe="mlp", networks=str(recipe_file)))
    assert (config.latent_dim, config.batch_size, config.loss) == (6, 128, "nonsaturating")
    assert set(files.copies(config)) == {config.networks}


def test_a_configuration_with_a_recipe_file_trains_from_python(recipe_file, tmp_path):
    config = trainer_package.configure(
        recipe=str(recipe_file), image_size=8, sample_grid=2, devices="cpu:1",
        run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert trainer_package.train(config).config.recipe == config.recipe
