"""Resuming keeps the settings of older runs despite new defaults, settings and flags."""

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest

from tests.helpers.runs import records
from trainer import __version__, recipes
from trainer.commands.flags import config_flags
from trainer.commands.flags.command_line import CommandLine
from trainer.config import Config
from trainer.config.replaced import REPLACEMENTS
from trainer.config.settings import Duration
from trainer.errors import ExitCode, UsageError
from trainer.recipes.recipe import Recipe

OLD_RUN = Path(__file__).resolve().parents[1] / "end_to_end" / "run-v1.zip"
SAME_COMMAND = [
    "train", "--recipe=mlp", "--image_size=8", "--latent_dim=4", "--g_width=0.03",
    "--d_width=0.03", "--batch_size=8", "--devices=cpu", "--run_dir=run", "--sample_grid=2",
]  # fmt: skip


def replaced_settings() -> set[str]:
    return {name for replacement in REPLACEMENTS for name in replacement.old}


@pytest.fixture
def old_run(tmp_path):
    zipfile.ZipFile(OLD_RUN).extractall(tmp_path)
    return tmp_path / "run"


def test_same_command_resumes_a_run_of_format_version_1(old_run, trainer):
    before = json.loads((old_run / "config.json").read_text())
    result = trainer(*SAME_COMMAND, "--steps=9")
    assert result.returncode == 0, result.stderr
    assert "Resuming from" in result.stdout
    assert f"trained by version unknown and is resumed by version {__version__}" in result.stdout
    after = json.loads((old_run / "config.json").read_text())
    replaced = replaced_settings()
    changed = {name for name in before.keys() - replaced if after[name] != before[name]}
    assert changed == {"length"}
    assert not replaced & after.keys()
    assert after["rmsprop_epsilon"] == 1e-7
    assert after["update_rule"] == "separate-simultaneous"
    assert [line["step"] for line in records(old_run)] == list(range(1, 10))
    second_resume = trainer(*SAME_COMMAND, "--steps=10")
    assert second_resume.returncode == 0, second_resume.stderr
    assert "is resumed by version" not in second_resume.stdout
    provenance = json.loads((old_run / "provenance.json").read_text())
    assert (provenance["began_with"], provenance["trainer"]) == ("0.1.0", __version__)


def test_only_given_flags_are_compared_with_the_stored_settings(old_run, trainer):
    resumed = trainer("train", "--devices=cpu", "--run_dir=run", "--steps=7")
    assert resumed.returncode == 0, resumed.stderr
    conflict = trainer("train", "--devices=cpu", "--run_dir=run", "--steps=8", "--g_lr=0.5")
    assert conflict.returncode == ExitCode.CHECKPOINT
    assert "other settings (g_lr: 0.0001 -> 0.5)" in conflict.stderr
    (old_run / "config.json").write_text("{")
    damaged = trainer("train", "--devices=cpu", "--run_dir=run", "--steps=8")
    assert damaged.returncode == ExitCode.CHECKPOINT
    assert "config.json is not JSON" in damaged.stderr


@pytest.mark.parametrize(
    ("old", "rule"),
    [
        (dict(d_update="joint", simultaneous=False, reuse_fakes=False), "joint"),
        (dict(d_update="separate", simultaneous=False), "separate"),
        (dict(d_update="joint", simultaneous=False, reuse_fakes=True), "joint-reuse"),
        (dict(d_update="joint", simultaneous=True, reuse_fakes=True), "joint-simultaneous"),
    ],
)
def test_replaced_settings_of_a_stored_run_are_translated(old, rule):
    values = json.loads(recipes.resolve({}).to_json())
    del values["update_rule"]
    config = Config.from_json(json.dumps({**values, **old}), "config.json")
    assert config.update_rule == rule


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (dict(g_lr_schedule="constant", lr_decay_kimg=0.0, lr_end=0.0), dict(g_lr=0.0002)),
        (
            dict(g_lr_schedule="linear", d_lr_schedule="cosine", lr_decay_kimg=9.0, lr_end=0.1),
            dict(
                g_lr="linear 0.0002 2e-05 over 9 kimg",
                d_lr="cosine 0.0003 3e-05 over 9 kimg",
            ),
        ),
        (
            dict(d_lr_schedule="inverse_time", d_lr_decay_per_kimg=0.5, g_lr_decay_per_kimg=0.0),
            dict(g_lr=0.0002, d_lr="inverse_time 0.0003 0.5 per kimg"),
        ),
        (
            dict(noise_decay_kimg=4.0, d_input_noise=0.1, d_layer_noise=0.0),
            dict(d_input_noise="linear 0.1 0 over 4 kimg", d_layer_noise=0.0),
        ),
        (dict(noise_decay_kimg=0.0, d_input_noise=0.1), dict(d_input_noise=0.1)),
    ],
)
def test_schedules_of_a_stored_run_are_translated(old, new):
    values = json.loads(recipes.resolve(dict(g_lr=2e-4, d_lr=3e-4)).to_json())
    config = Config.from_json(json.dumps({**values, **old}), "config.json")
    assert {name: config.as_dict()[name] for name in new} == new


@pytest.mark.parametrize(
    ("flags", "new", "warning"),
    [
        (
            ["--g_lr_schedule=cosine", "--lr_decay_kimg=5", "--g_lr=1e-3"],
            dict(g_lr="cosine 0.001 0 over 5 kimg", d_lr=2e-4),
            "--g_lr_schedule and --lr_decay_kimg will be removed in version 0.3.0. Use "
            "--g_lr='cosine 0.001 0 over 5 kimg' --d_lr=0.0002.",
        ),
        (
            ["--recipe=dcgan-sigmoid", "--d_lr_decay_per_kimg=0.5", "--d_input_noise=1",
             "--noise_decay_kimg=2"],
            dict(
                d_lr="inverse_time 0.0002 0.5 per kimg",
                g_lr="inverse_time 0.0001 4.6875e-07 per kimg",
                d_input_noise="linear 1 0 over 2 kimg",
            ),
            "--noise_decay_kimg will be removed in version 0.3.0. Use "
            "--d_input_noise='linear 1 0 over 2 kimg' --d_layer_noise=0.0.",
        ),
        (["--recipe=dcgan-sigmoid", "--g_lr_schedule=constant"], dict(g_lr=1e-4), "--g_lr=0.0001"),
    ],
)  # fmt: skip
def test_replaced_flags_of_schedules_work_with_a_warning(flags, new, warning):
    line = CommandLine("train", "")
    config_flags.define_settings(line)
    values = line.parse(flags)
    config, _ = config_flags.resolve(values, {})
    assert {name: config.as_dict()[name] for name in new} == new
    assert any(warning in text for text in config_flags.warnings_of_replaced_flags(values, config))
    again, _ = config_flags.resolve(values, {}, lambda _: config)
    assert again == config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--g_lr_schedule=cosine"], "--g_lr_schedule=cosine needs --lr_decay_kimg."),
        (["--d_lr_schedule=inverse_time"], "needs --d_lr_decay_per_kimg."),
        (["--d_lr_schedule=cosin"], "--d_lr_schedule='cosin' is not known. Did you mean cosine?"),
        (["--lr_end=2", "--lr_decay_kimg=1"], "--lr_end=2.0 is too large"),
        (["--noise_decay_kimg=-1"], "--noise_decay_kimg=-1.0 is not valid. Use a number of 0"),
        (
            ["--g_lr=linear 1 0 over 5 kimg", "--lr_end=0"],
            "--g_lr='linear 1 0 over 5 kimg' is a schedule, which replaces --lr_end. Leave out",
        ),
    ],
)
def test_replaced_flags_of_schedules_that_do_not_fit_are_named(flags, message):
    line = CommandLine("train", "")
    config_flags.define_settings(line)
    with pytest.raises(UsageError) as error:
        config_flags.resolve(line.parse(flags), {})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("flags", "rule", "named"),
    [
        (["--d_update=separate"], "separate-reuse", "--d_update"),
        (["--simultaneous"], "joint-simultaneous", "--simultaneous"),
        (
            ["--noreuse_fakes", "--d_update=sequential"],
            "sequential",
            "--d_update and --reuse_fakes",
        ),
    ],
)
def test_replaced_flags_work_with_a_warning(trainer, tmp_path, flags, rule, named):
    command = [*SAME_COMMAND, "--recipe=dcgan", "--steps=1", *flags]
    result = trainer(*command)
    assert result.returncode == 0, result.stderr
    warning = f"WARNING: {named} will be removed in version 0.3.0. Use --update_rule={rule}."
    assert warning in result.stdout
    assert json.loads((tmp_path / "run/config.json").read_text())["update_rule"] == rule


def test_replaced_flags_resume_a_run_that_was_started_with_them(old_run, trainer):
    same = ["--d_update=separate", "--simultaneous", "--steps=7"]
    result = trainer("train", "--devices=cpu", "--run_dir=run", *same)
    assert result.returncode == 0, result.stderr
    conflict = trainer("train", "--devices=cpu", "--run_dir=run", "--nosimultaneous", "--steps=8")
    assert conflict.returncode == ExitCode.CHECKPOINT
    assert "update_rule: separate-simultaneous -> separate" in conflict.stderr


def test_replaced_flags_cannot_be_combined_with_their_replacement(trainer):
    result = trainer("train", "--dry_run", "--simultaneous", "--update_rule=joint")
    assert result.returncode == ExitCode.USAGE
    assert "--update_rule replaces --simultaneous. Leave out" in result.stderr
    unknown = trainer("train", "--dry_run", "--d_update=jiont")
    assert "--update_rule='jiont-reuse' is not known. Did you mean joint-reuse?" in unknown.stderr
    assert "--simultaneous" not in trainer("train", "--help").stdout


def test_replaced_flags_are_removed_in_time():
    version = [int(part) for part in __version__.split(".")]
    for replacement in REPLACEMENTS:
        assert version < [int(part) for part in replacement.removed_in.split(".")], replacement.old


def test_changing_a_recipe_does_not_change_stored_runs(monkeypatch):
    stored = recipes.resolve(dict(recipe="mlp", batch_size=32, length=Duration(9, "steps")))
    changed = dataclasses.replace(recipes.RECIPES["mlp"], loop=dict(g_lr=0.5, sample_grid=7))
    monkeypatch.setitem(recipes.RECIPES, "mlp", changed)
    assert isinstance(changed, Recipe)
    assert recipes.resolve(dict(recipe="mlp")).g_lr == 0.5
    assert recipes.resolve(dict(recipe="mlp"), stored) == stored
    shorter = recipes.resolve(dict(recipe="mlp", length=Duration(5, "steps")), stored)
    assert shorter == stored.replace(length=Duration(5, "steps"))


def test_settings_of_a_single_start_are_not_restored():
    stored = recipes.resolve(dict(devices="cpu:2", max_hours=2.0, profile=3, keep_checkpoints=7))
    resumed = recipes.resolve({}, stored)
    assert (resumed.devices, resumed.max_hours, resumed.profile) == ("auto", 0.0, 0)
    assert resumed.keep_checkpoints == 7


def test_flags_and_environment_take_precedence_over_a_stored_run(trainer, tmp_path):
    stored = recipes.resolve(dict(data_dir="/old", g_lr=0.25))
    values = dict.fromkeys(["steps", "epochs", "kimg"])
    overridden = config_flags.resolve(values, {"TRAINER_DATA_DIR": "/new"}, lambda _: stored)[0]
    assert (overridden.data_dir, overridden.g_lr) == ("/new", 0.25)
    kept = config_flags.resolve(values, {}, lambda _: stored)[0]
    assert kept.data_dir == "/old"


def test_every_newer_setting_has_a_legacy_value():
    """Checks that settings absent from format version 1 declare their value for its runs."""
    with zipfile.ZipFile(OLD_RUN) as archive:
        old = json.loads(archive.read("run/config.json"))
    missing = [
        field.name
        for field in dataclasses.fields(Config)
        if field.name not in old and field.metadata["legacy"] is dataclasses.MISSING
    ]
    assert not missing


def test_changing_a_default_does_not_change_older_runs(monkeypatch):
    monkeypatch.setitem(Config.__init__.__kwdefaults__, "rmsprop_epsilon", 0.5)
    with zipfile.ZipFile(OLD_RUN) as archive:
        text = archive.read("run/config.json")
    assert Config.from_json(text, "config.json").rmsprop_epsilon == 1e-7
    assert recipes.resolve(dict(recipe="mlp")).rmsprop_epsilon == 0.5
