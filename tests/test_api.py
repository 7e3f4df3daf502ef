"""The interface for Python programs, and the notebook that shows it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import trainer
from tests.helpers.runs import TINY
from trainer.errors import CheckpointError, ExitCode, StoppedError, UsageError
from trainer.reporting.console import Console
from trainer.reporting.control import Control, saved_at_interrupt

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("api") / "run"
    return trainer.train(recipe="dcgan", steps=2, run_dir=str(run_dir), **TINY)


def test_importing_the_package_loads_no_tensorflow():
    code = "import sys, trainer; trainer.train; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = trainer.trian


def test_a_run_is_trained_and_resumed(run, capsys):
    assert (run.config.batch_size, str(run.config.length)) == (8, "2 steps")
    assert run.class_names == tuple("0123456789")
    again = trainer.train(run.config.replace(length=trainer.configure(steps=3).length))
    output = capsys.readouterr().out
    assert "Changed settings of the run: length: 2 steps -> 3 steps\n" in output
    assert "Resuming from" in output
    assert again.run_dir.path == run.run_dir.path
    with pytest.raises(UsageError, match="--steps=1 is 1 steps, but"):
        trainer.train(run_dir=run.name, steps=1)
    with pytest.raises(CheckpointError, match=r"g_lr: 0\.0002 -> 0\.5"):
        trainer.train(run_dir=run.name, g_lr=0.5)


def test_samples(run):
    images = run.sample(num=5, labels=[3, "8"], seed=1)
    assert (images.shape, images.dtype) == ((5, 28, 28, 1), np.uint8)
    np.testing.assert_array_equal(images, trainer.load(run.name).sample(5, ["3", 8], 1))
    assert (run.sample(num=5, labels=3, seed=1)[0] == images[0]).all()
    assert run.sample(num=12).shape[0] == 12
    with pytest.raises(UsageError, match="--labels='11' is not a class of this run"):
        run.sample(labels=11)
    with pytest.raises(UsageError, match="--num=0"):
        run.sample(num=0)


def test_many_samplers_in_a_program_are_no_reason_for_a_warning(run, caplog):
    for seed in range(6):
        trainer.load(run.name).sample(num=2, seed=seed)
    assert "retracing" not in caplog.text


def test_evaluation_and_export(run, tmp_path, capsys):
    result = run.evaluate(num_samples=100, out=tmp_path / "results")
    assert capsys.readouterr().out.count("inception_score") == 1
    written = json.loads((tmp_path / "results/evaluation.json").read_text())
    assert result["fid"] == written["fid"] > 0
    folder = run.export(tmp_path / "export")
    assert {path.name for path in folder.iterdir()} == {"generator.keras", "saved_model"}


def test_errors_are_exceptions_with_the_texts_of_the_commands(tmp_path):
    with pytest.raises(UsageError, match="--recipe='dcgn' is not known"):
        trainer.configure(recipe="dcgn")
    with pytest.raises(UsageError, match="'batchsize' is not a setting"):
        trainer.configure(batchsize=3)
    with pytest.raises(UsageError, match="is not a run directory"):
        trainer.load(tmp_path)
    with pytest.raises(UsageError, match="both set the length of training"):
        trainer.configure(kimg=1, epochs=1)
    with pytest.raises(UsageError, match="'digits' is not a configuration"):
        trainer.train("digits")
    with pytest.raises(UsageError, match="Give a configuration or settings, not both"):
        trainer.train(trainer.configure(), batch_size=3)


def test_a_program_can_stop_a_run(tmp_path):
    control = Control(
        terminal=Console(open(os.devnull, "w")),
        stop_requested=lambda: control.phases.name in ("compiling", "training", "saving"),
    )
    given = dict(recipe="mlp", steps=10**6, run_dir=str(tmp_path / "run"), **TINY)
    with pytest.raises(StoppedError, match="which are saved in") as error:
        trainer.train(control=control, **given)
    assert error.value.exit_code == ExitCode.STOPPED


def test_ctrl_c_in_a_program_saves_and_raises(tmp_path):
    # A shell that runs the tests in the background makes its commands ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given = dict(recipe="mlp", steps=10**6, run_dir="run", log_every_secs=0.0, **TINY)
    code = f"import trainer\ntry: trainer.train(**{given})\nexcept KeyboardInterrupt as e: print(e)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRAINER_DATA_DIR": ""},
    )  # fmt: skip
    while "images/s" not in (line := process.stdout.readline()):
        assert line, "the program has ended"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    step = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert f"after {step} of 1000000 steps, which are saved in run" in output.splitlines()[-1]
    assert (tmp_path / f"run/checkpoints/ckpt-{step}.json").exists()
    with pytest.raises(KeyboardInterrupt), saved_at_interrupt():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_notebook(tmp_path):
    """Executes the cells of the notebook in order, with a shorter training."""
    notebook = json.loads((ROOT / "docs/first-steps.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    program = "\n".join(cells)
    for original, shorter in (("kimg=150", "kimg=0.5"), ("num_samples=10000", "num_samples=100")):
        assert original in program
        program = program.replace(original, shorter)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRAINER_DATA_DIR": ""}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Recipe dcgan on digits" in done.stdout
    assert done.stdout.endswith(
        "--recipe='dcgn' is not known. Did you mean dcgan? Known: "
        "cgan, dcgan, dcgan-kstep, dcgan-sigmoid, dcgan-studiogan, mlp, mlp-small, r3gan, sngan.\n"
    )
    assert (tmp_path / "digits-generator/saved_model/saved_model.pb").exists()
