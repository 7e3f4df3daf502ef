"""The command line: help, one-line errors and exit codes."""

import json
import subprocess
import sys

import pytest

from trainer import recipes
from trainer.errors import ExitCode


def test_help_does_not_import_tensorflow(trainer):
    result = trainer("train", "--help")
    assert result.returncode == 0
    assert "--batch_size" in result.stdout
    code = (
        "import sys; from trainer.__main__ import main; main(['train', '--help']); "
        "main(['train', '--nonsense']); main(['recipes']); "
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_dry_run_prints_the_resolved_configuration(trainer):
    result = trainer(
        "train",
        "--dry_run",
        "--recipe=mlp",
        "--epochs=3",
        "--sample_every_kimg=2",
        TRAINER_DATA_DIR="/somewhere",
    )
    config = json.loads(result.stdout)
    assert result.returncode == 0
    assert config["length"] == "3 epochs"
    assert config["sample_every"] == "2 kimg"
    assert config["data_dir"] == "/somewhere"
    assert config["run_dir"] == "runs/mlp-digits"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "command='trian' is not known. Did you mean train?"),
        ("train --recipe=dcgn", "Did you mean dcgan? Known: cgan, dcgan, dcgan-kstep"),
        ("train --batchsize=3", "--batchsize is not a flag of train. Did you mean --batch_size?"),
        ("train --batch_size=many", "batch_size"),
        ("train --steps=3 --kimg=1", "--steps and --kimg both set the length of training"),
        ("train stray", "'stray' is not a flag"),
        ("train --kimg=-1", "is too small"),
        ("train --data_dir=nowhere --dataset=mnist", "--data_dir=nowhere is not a folder."),
        ("generate", "--run_dir is missing"),
        ("evaluate --run_dir=nowhere", "nowhere is not a run directory"),
        ("generate --run_dir=nowhere", "nowhere is not a run directory"),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_64(trainer, arguments, message):
    result = trainer(*arguments.split())
    assert result.returncode == ExitCode.USAGE
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_trainer_task_runs_train(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "trainer.task", "--dry_run"], capture_output=True, cwd=tmp_path
    )
    assert json.loads(result.stdout)["recipe"] == "dcgan"


def test_unusable_devices_are_usage_errors(tiny, run):
    from trainer.errors import UsageError

    for devices, message in (
        ("cpu:3", "--batch_size=8 cannot be divided among 3 devices"),
        ("tpu", "--devices='tpu' is not valid"),
        ("gpu", "TensorFlow lists no GPU on this machine"),
    ):
        with pytest.raises(UsageError, match=message):
            run(tiny(devices=devices))


def test_recipes_prints_sources_and_differences_of_every_recipe(trainer):
    result = trainer("recipes")
    assert result.returncode == 0, result.stderr
    facts = json.loads(trainer("recipes", "--json").stdout)
    assert set(facts) == set(recipes.RECIPES)
    for name, fact in facts.items():
        assert f"\n{name}\n" in f"\n{result.stdout}"
        assert all(fact.values()), name
    assert "inference mode" in result.stdout
    assert "1e-14" in result.stdout
