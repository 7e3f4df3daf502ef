"""The first commands of a new user: the help, the version, mistyped flags and paths."""

import re
import subprocess
import sys

import pytest

from trainer import __version__, recipes
from trainer.commands.flags import config_flags
from trainer.commands.flags.command_line import CommandLine
from trainer.commands.flags.settings_help import help_details
from trainer.config import all_settings
from trainer.errors import ExitCode, HelpRequested


def parse(*arguments: str) -> dict:
    """Returns the values of the flags of the settings."""
    line = CommandLine("train", "")
    config_flags.define_settings(line)
    return line.parse(arguments, help_details)


def help_of(*arguments: str) -> str:
    """Returns the help on the settings."""
    with pytest.raises(HelpRequested) as request:
        parse("--help", *arguments)
    return str(request.value)


def default_in(text: str, flag: str) -> str | None:
    """Returns the default that a help text states for a flag."""
    (entry,) = re.findall(rf"^  --(?:\[no\])?{flag}:(.*(?:\n      .*)*)", text, re.M)
    stated = re.findall(r"\(default: ([^()]*)\)$", " ".join(entry.split()))
    return stated[0] if stated else None


def test_help_states_the_defaults_of_the_default_recipe():
    text = help_of()
    assert default_in(text, "loss") == "hinge"
    assert default_in(text, "beta1") == "0.5"
    assert default_in(text, "d_weights") == "spectral"
    assert default_in(text, "conditional") == "on"
    assert default_in(text, "kimg") == "150"
    assert default_in(text, "steps") is None


def test_help_states_the_defaults_of_the_selected_recipe():
    text = help_of("--recipe=cgan")
    assert "The defaults below are those of --recipe=cgan." in text
    assert default_in(text, "recipe") == "dcgan"
    assert default_in(text, "d_conditioning") == "multiply"
    assert default_in(text, "batch_size") == "128"
    assert default_in(text, "epochs") == "50"
    assert default_in(text, "kimg") is None
    assert default_in(help_of("--recipe=dcgan-kstep"), "sample_every_kimg") == "2 epochs"


def test_help_states_the_defaults_of_networks_and_data_sets():
    text = help_of("--networks=dcgan-kstep")
    assert (default_in(text, "latent_dim"), default_in(text, "loss")) == ("150", "hinge")
    assert default_in(help_of("--recipe=mlp"), "batch_size") == "128"
    text = help_of("--recipe=mlp", "--dataset=cifar10")
    assert (default_in(text, "batch_size"), default_in(text, "dataset")) == ("64", "digits")


def test_help_states_the_defaults_of_a_recipe_file(tmp_path):
    path = tmp_path / "mygan.py"
    path.write_text(
        "from trainer.recipes.recipe import Recipe\n"
        "RECIPE = Recipe(source='s', architecture='a', updates='u', loop=dict(g_lr=0.03),\n"
        "                hyperparameters=dict(units=32))\n"
        "def generator(config, shape): ...\n"
        "def discriminator(config, shape): ...\n"
    )
    text = help_of(f"--recipe={path}")
    assert default_in(text, "g_lr") == "0.03"
    assert default_in(text, "hyperparameters") == "units=32"


def test_help_lists_every_setting_in_a_group_with_the_common_ones_first():
    text = help_of()
    names = [field.name for fields in all_settings.groups().values() for field in fields]
    assert sorted(names) == sorted(recipes.resolve({}).as_dict())
    headings = re.findall(r"^(\S.*):$", text, re.M)
    assert headings[:4] == [
        "Recipes, with the default length of training",
        "Common flags",
        "Data",
        "Networks",
    ]
    assert headings[1:] == list(all_settings.groups())
    common = text.partition("\nCommon flags:\n")[2].partition("\n\n")[0]
    for flag in ("recipe", "dataset", "kimg", "batch_size", "run_dir", "devices", "seed"):
        assert f"\n  --{flag}:" in f"\n{common}"


def test_help_lists_the_recipes_with_their_lengths():
    text = help_of()
    for name, recipe in recipes.RECIPES.items():
        assert recipe.summary
        length = recipes.resolve({"recipe": name}).length
        assert re.search(rf"^  {name} +{length} +{recipe.summary[:10]}", text, re.M), name


def test_the_list_of_commands_loads_no_command():
    code = (
        "import sys; from trainer.__main__ import main; main(['--help']); "
        "sys.exit(any(name.startswith('trainer.commands.') for name in sys.modules))"
    )
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert "\n  train     Trains a recipe on a data set\n" in listed.stdout


def test_help_of_a_recipe_loads_no_tensorflow():
    code = (
        "import sys; from trainer.__main__ import main; main(['train', '--help', '--recipe=cgan']);"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_of_an_unknown_recipe_is_an_error(trainer):
    answer = trainer("train", "--help", "--recipe=cgn")
    assert answer.returncode == ExitCode.USAGE
    assert "--recipe='cgn' is not known. Did you mean cgan?" in answer.stderr


def test_a_mistyped_flag_prints_the_suggestion_only(trainer):
    answer = trainer("train", "--batchsize=3")
    assert answer.stderr == (
        "error: --batchsize is not a flag of train. Did you mean --batch_size? See --help.\n"
    )
    answer = trainer("status", "--qqqq=3")
    assert answer.stderr == (
        "error: --qqqq is not a flag of status. Known: --every_secs, --help, --json, --run_dir, "
        "--watch.\n"
    )


@pytest.mark.parametrize(
    "flag", ["--kimg=-5", "--epochs=-0.5", "--steps=-1", "--sample_every_kimg=-2"]
)
def test_a_negative_length_is_named_as_it_was_given(trainer, flag):
    answer = trainer("train", flag)
    assert answer.returncode == ExitCode.USAGE
    assert answer.stderr == f"error: {flag} is too small. Use 0 or more.\n"


def test_a_tilde_is_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    names = all_settings.paths() - {"recipe", "networks"}
    assert names == {
        "dataset", "data_dir", "run_dir", "tensorboard_dir", "model_dir", "scratch_dir",
        "heartbeat", "inception_path", "init_from", "cache_dir",
    }  # fmt: skip
    config = config_flags.resolve(parse(*(f"--{name}=~/x" for name in names)), {})[0]
    assert {getattr(config, name) for name in names} == {"/home/someone/x"}
    config = config_flags.resolve(parse(), {"TRAINER_DATA_DIR": "~/sets"})[0]
    assert config.data_dir == "/home/someone/sets"


def test_a_tilde_is_expanded_in_the_path_of_a_recipe(trainer, tmp_path):
    answer = trainer("train", "--recipe=~/no.py", "--networks=~/no.py", HOME=str(tmp_path))
    assert f"--recipe={tmp_path}/no.py cannot be read" in answer.stderr


def test_a_tilde_is_expanded_by_commands_on_runs(trainer, tmp_path):
    for command in ("generate", "evaluate", "export", "status"):
        answer = trainer(command, "--run_dir=~/run", HOME=str(tmp_path))
        assert f"{tmp_path}/run is not a run directory" in answer.stderr
    answer = trainer("doctor", "--liveness", "--heartbeat=~/beat", HOME=str(tmp_path))
    assert f"{tmp_path}/beat" in answer.stderr


def test_a_run_that_kept_a_tilde_is_resumed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    stored = recipes.resolve({"dataset": "~/x", "run_dir": "run"})
    config = config_flags.resolve(parse("--dataset=~/x"), {}, lambda run_dir: stored)[0]
    assert config.dataset == "~/x"


def test_version(trainer):
    answer = trainer("--version")
    assert (answer.returncode, answer.stdout) == (ExitCode.OK, f"gan-trainer {__version__}\n")
    code = "import sys; sys.argv[1:] = ['--version']; from trainer import __main__ as m; "
    script = subprocess.run(
        [sys.executable, "-c", code + "m.console_script()"], capture_output=True, text=True
    )
    assert script.stdout == answer.stdout


def test_an_unknown_flag_of_train_does_not_list_all_flags(trainer):
    result = trainer("train", "--qqqqqq")
    assert result.returncode == ExitCode.USAGE
    assert result.stderr == "error: --qqqqqq is not a flag of train. --help lists the flags.\n"


def test_h_is_help(trainer):
    assert trainer("train", "-h").stdout == trainer("train", "--help").stdout
