"""Whole runs: their files, metrics, resuming, stopping, errors and generated images."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.helpers.runs import records, steps, variables
from trainer import recipes
from trainer.config.settings import Duration
from trainer.data import sources
from trainer.errors import CheckpointError, DivergedError, ExitCode, StoppedError, UsageError
from trainer.models.objective import OBJECTIVES
from trainer.reporting import console
from trainer.run_dir.checkpoint_files import list_checkpoints
from trainer.run_dir.directory import RunDir
from trainer.training.loop import LoopFunctions, LoopPlan, Periodic, train_steps


def test_run_writes_its_files_samples_and_metrics(tiny, run, tmp_path):
    config = tiny(
        recipe="dcgan", length=steps(6), sample_every=steps(2), log_every_secs=0.0, sample_grid=3
    )
    output = run(config)
    folder = Path(config.run_dir)
    for path in ("config.json", "data.json", "provenance.json", "training.gif", "generator.keras"):
        assert (folder / path).is_file(), path
    grids = sorted(p.name for p in (folder / "samples").iterdir())
    assert grids == [
        *(f"fakes-0000{k}.png" for k in ("0.000", "0.016", "0.032", "0.048")),
        "reals.png",
    ]
    sheet = Image.open(folder / "samples" / "fakes-00000.048.png")
    assert sheet.size == (3 * 28, 10 * 28)  # a row per class
    assert Image.open(folder / "training.gif").n_frames == 4
    assert "Samples" in output
    assert "fakes-00000.048.png" in output
    assert "no GPU in use" in output
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["tensorflow"] == tf.__version__
    assert provenance["devices"] == ["CPU:0"]
    data = json.loads((folder / "data.json").read_text())
    assert data["fingerprint"] == sources.load(config).fingerprint

    lines = records(folder)
    expected_names = "step kimg images_per_sec d_loss g_loss d_acc d_real_acc d_fake_acc g_acc time"
    assert set(expected_names.split()) <= set(lines[0])
    assert sum(line["steps"] for line in lines) == lines[-1]["step"] == 6
    line = lines[-1]
    assert line["d_acc"] == pytest.approx((line["d_real_acc"] + line["d_fake_acc"]) / 2)
    assert line["images_per_sec"] == pytest.approx(line["steps"] * 8 / line["secs"])


def test_tensorboard_has_scalars_and_sample_grids(tiny, run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny(length=steps(2), log_every_secs=0.0)
    run(config)
    events = accumulator.EventAccumulator(str(Path(config.run_dir) / "tensorboard"))
    events.Reload()
    tensors = events.Tags()["tensors"]
    assert {"train/d_loss", "train/images_per_sec", "fakes", "reals"} <= set(tensors)
    value = tf.make_ndarray(events.Tensors("train/d_loss")[-1].tensor_proto)
    assert value == pytest.approx(records(config.run_dir)[-1]["d_loss"], rel=1e-6)
    png = tf.make_ndarray(events.Tensors("fakes")[-1].tensor_proto)[2]
    assert tf.io.decode_png(png).shape == (10 * 28, 2 * 28, 1)


@pytest.mark.parametrize("recipe", ["dcgan", "mlp-small"])
def test_resumed_run_is_identical_to_an_uninterrupted_run(tiny, run, tmp_path, recipe):
    """Compares the variables, samples and metrics of 3 + 3 steps with those of 6 steps."""
    given = dict(recipe=recipe, log_every_steps=1, sample_every=steps(2))
    uninterrupted = tiny(**given, length=steps(6), run_dir=str(tmp_path / "uninterrupted"))
    run(uninterrupted)
    interrupted = tiny(**given, length=steps(3), run_dir=str(tmp_path / "interrupted"))
    run(interrupted)
    output = run(interrupted.replace(length=steps(6)))
    assert "Resuming from" in output
    expected, actual = variables(uninterrupted.run_dir), variables(interrupted.run_dir)
    assert expected.keys() == actual.keys()
    assert len(expected) > 30
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
    for one, other in zip(
        records(uninterrupted.run_dir), records(interrupted.run_dir), strict=True
    ):
        for key in ("step", "steps", "d_loss", "g_loss", "d_acc", "g_acc"):
            assert one[key] == other[key], key
    for path in (Path(uninterrupted.run_dir) / "samples").iterdir():
        resumed = Path(interrupted.run_dir) / "samples" / path.name
        assert path.read_bytes() == resumed.read_bytes(), path.name


def test_run_resumes_on_two_replicas_with_the_same_losses(tiny, run, tmp_path):
    given = dict(recipe="dcgan-sigmoid", log_every_steps=1)
    uninterrupted = tiny(**given, length=steps(6), run_dir=str(tmp_path / "uninterrupted"))
    run(uninterrupted)
    interrupted = tiny(**given, length=steps(3), run_dir=str(tmp_path / "interrupted"))
    run(interrupted)
    run(interrupted.replace(length=steps(6), devices="cpu:2"))
    for one, other in zip(
        records(uninterrupted.run_dir), records(interrupted.run_dir), strict=True
    ):
        assert other["d_loss"] == pytest.approx(one["d_loss"], rel=2e-3)
        assert other["g_loss"] == pytest.approx(one["g_loss"], rel=2e-3)


def test_four_replicas_have_the_losses_of_one(tmp_path, trainer):
    """Compares runs with all random draws, which must not depend on the replicas."""
    losses, strengths = {}, {}
    for devices in ("cpu", "cpu:4"):
        result = trainer(
            "train", "--recipe=dcgan-kstep", "--conditional", "--horizontal_flip", "--d_steps=2",
            "--augment=ada", "--augment_speed_kimg=0.05", "--augment_target=-0.5",
            "--g_width=0.05", "--d_width=0.05", "--batch_size=8", "--steps=10",
            "--log_every_steps=1", f"--devices={devices}", f"--run_dir={devices}",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        losses[devices] = [(r["d_loss"], r["g_loss"]) for r in records(tmp_path / devices)]
        strengths[devices] = [r["augment_strength"] for r in records(tmp_path / devices)]
    assert len(losses["cpu"]) == 10
    assert strengths["cpu:4"] == strengths["cpu"]
    assert strengths["cpu"][-1] > 0
    np.testing.assert_allclose(losses["cpu:4"], losses["cpu"], rtol=2e-3)


def test_starting_a_complete_run_trains_no_further(tiny, run):
    config = tiny(length=steps(2))
    run(config)
    before = variables(config.run_dir)
    output = run(config)
    assert "is complete: 2 steps" in output
    for name, value in variables(config.run_dir).items():
        np.testing.assert_array_equal(before[name], value)


def test_requested_stop_saves_a_checkpoint(tiny, run):
    stop_requests = itertools.chain([False] * 6, itertools.repeat(True))  # 3 of them at the start
    config = tiny(length=steps(100000))
    with pytest.raises(StoppedError, match="Running the same command again resumes from step"):
        run(config, stop_requested=lambda: next(stop_requests))
    assert records(config.run_dir)[-1]["step"] > 0
    assert variables(config.run_dir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_process_resumes(tmp_path, trainer, number):
    """Kills a process with a signal and resumes its run with the same command."""
    arguments = [
        "train", "--run_dir=run", "--g_width=0.05", "--d_width=0.05", "--batch_size=8",
        "--steps=300", "--checkpoint_every_kimg=0.4", "--sample_every_kimg=0", "--log_every_secs=0",
        "--devices=cpu",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *arguments],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 60
    while len(list(checkpoints.glob("*.index"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (ExitCode.STOPPED if number == signal.SIGTERM else -number)
    resumed = trainer(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming from" in resumed.stdout
    lines = records(tmp_path / "run")
    assert sum(line["steps"] for line in lines) == 300
    uninterrupted = trainer(*[a.replace("=run", "=uninterrupted") for a in arguments])
    assert uninterrupted.returncode == 0
    expected, actual = variables(tmp_path / "uninterrupted"), variables(tmp_path / "run")
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_run_of_format_version_1_resumes(run, trainer, tmp_path):
    """Resumes a run directory that was written in format version 1 and has 6 steps."""
    zipfile.ZipFile(Path(__file__).parent / "run-v1.zip").extractall(tmp_path)
    folder = RunDir(tmp_path / "run")
    before = records(folder.path)
    output = run(folder.read_config().replace(length=steps(9), run_dir=str(folder.path)))
    assert f"Resuming from {folder.checkpoints}/ckpt-6" in output
    assert records(folder.path)[:6] == before
    assert [line["step"] for line in records(folder.path)][-1] == 9
    drawn = trainer("generate", f"--run_dir={folder.path}", "--num=2", "--out=two.png")
    assert drawn.returncode == 0, drawn.stderr


def test_resuming_with_changed_settings_or_data_fails(tiny, run):
    config = tiny(length=steps(1))
    run(config)
    with pytest.raises(CheckpointError, match=r"other settings \(g_lr: 0.0002 -> 0.001\)"):
        run(config.replace(g_lr=1e-3))
    path = RunDir(Path(config.run_dir)).dataset
    path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(CheckpointError, match="has changed since the run"):
        run(config)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"data\.json, which describes .*Remove it"):
        run(config)


def test_resuming_in_another_precision_fails(tiny, run, tmp_path):
    config = tiny(recipe="mlp", length=Duration(1, "steps"))
    run(config)
    record = tmp_path / "run" / "provenance.json"
    original = json.loads(record.read_text())
    # As if "auto" had been resolved on another device.
    record.write_text(json.dumps({**original, "precision": "bfloat16"}))
    longer = config.replace(length=Duration(2, "steps"))
    with pytest.raises(CheckpointError, match=r"other settings \(precision: bfloat16 -> float32\)"):
        run(longer)
    record.write_text(json.dumps(original))
    run(longer.replace(precision="float32"))  # what "auto" was resolved to


def test_damaged_checkpoints_are_skipped_and_having_none_left_fails(tiny, run):
    config = tiny(length=steps(4), checkpoint_every=steps(2))
    run(config)
    folder = RunDir(Path(config.run_dir)).checkpoints
    (folder / "checkpoint").unlink()  # TensorFlow's list of checkpoints, which must not be needed
    newest = folder / "ckpt-4.data-00000-of-00001"
    newest.write_bytes(newest.read_bytes()[:100])
    output = run(config.replace(length=steps(5)))
    assert "WARNING: Checkpoint" in output
    assert "Resuming from" in output
    assert "ckpt-2" in output
    for path in folder.glob("*.data*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"None of the checkpoints .* ckpt-2: "):
        run(config.replace(length=steps(6)))


def test_fresh_renames_the_previous_run_directory(tmp_path):
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / "x").write_text("old")
    for name in ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"):
        with pytest.raises(UsageError, match="--fresh is refused"):
            folder.set_aside({name: "1"})
    folder.set_aside({})
    assert not folder.path.exists()
    assert (tmp_path / "run.old-1" / "x").read_text() == "old"


def test_init_from_starts_with_the_networks_of_another_run(tiny, run, tmp_path):
    old = tiny(length=steps(3), run_dir=str(tmp_path / "old"))
    run(old)
    new = tiny(length=steps(0), run_dir=str(tmp_path / "new"), init_from=old.run_dir, g_lr=1e-3)
    output = run(new)
    assert f"Starting from the networks of {old.run_dir}" in output
    before, after = variables(old.run_dir), variables(new.run_dir)
    same = [n for n in before if n.startswith(("generator/", "discriminator/", "average/"))]
    assert len(same) > 20
    for name in same:
        np.testing.assert_array_equal(before[name], after[name])
    images = next(name for name in before if name.startswith("images"))
    assert (before[images], after[images]) == (24, 0)
    with pytest.raises(UsageError, match=r"do not fit this run \(latent_dim: 100 -> 7"):
        run(new.replace(run_dir=str(tmp_path / "third"), latent_dim=7))
    # If the other run has no EMA, the EMA starts from its generator.
    plain = tiny(length=steps(2), run_dir=str(tmp_path / "plain"), ema_half_life_kimg=0.0)
    run(plain)
    run(new.replace(run_dir=str(tmp_path / "fourth"), init_from=plain.run_dir))
    before, after = variables(plain.run_dir), variables(tmp_path / "fourth")
    names = [n for n in before if n.startswith("generator/")]
    assert names  # batch-norm statistics; checkpoints store the weights under the optimizer
    for name in names:
        average = name.replace("generator/", "average/", 1)
        np.testing.assert_array_equal(before[name], after[average])


def test_generate_writes_images_in_each_format(tiny, run, trainer):
    config = tiny(recipe="cgan", length=steps(2))
    run(config)
    folder = Path(config.run_dir)
    draw = ["generate", f"--run_dir={folder}", "--devices=cpu"]
    assert trainer(*draw, "--num=13", "--out=all.npz").returncode == 0
    both = np.load(folder.parent / "all.npz")
    assert both["images"].shape == (13, 28, 28, 1)
    assert both["images"].dtype == np.uint8
    np.testing.assert_array_equal(both["labels"], [*range(10), 0, 1, 2])
    result = trainer(*draw, "--num=4", "--labels=7,1", "--seed=3", "--out=pictures")
    assert result.returncode == 0, result.stderr
    names = sorted(p.name for p in (folder.parent / "pictures").iterdir())
    assert names == ["0-class7.png", "1-class1.png", "2-class7.png", "3-class1.png"]
    assert trainer(*draw, "--num=9", "--label=7", "--out=seven.png").returncode == 0
    assert Image.open(folder.parent / "seven.png").size == (3 * 28, 3 * 28)
    wrong = trainer(*draw, "--label=11")
    assert wrong.returncode == ExitCode.USAGE
    assert "--label='11' is not a class of this run. Its classes are 0 to 9" in wrong.stderr
    # The saved generator can be used without the run directory.
    alone = keras.models.load_model(folder / "generator.keras")
    assert alone([np.zeros([1, 100]), np.array([3])]).shape == (1, 28, 28, 1)


def test_generated_images_do_not_depend_on_their_number(tiny, run):
    from trainer.generation.sampler import Sampler

    config = recipes.resolve(dict(recipe="mlp", g_width=0.05))
    from trainer.config.dataset import ImageShape
    from trainer.recipes.networks import build_networks

    generator, _ = build_networks(config, ImageShape.square(28, 1, 10))
    sampler = Sampler(config, generator)
    few = np.concatenate(list(sampler.draw(3, seed=5)))
    many = np.concatenate(list(sampler.draw(130, seed=5)))
    assert many.shape == (130, 28, 28, 1)
    np.testing.assert_array_equal(few, many[:3])
    assert (many[0] != many[100]).any()
    other = np.concatenate(list(sampler.draw(3, seed=6)))
    assert (other != few).any()


def test_replicas_generate_the_images_of_one_replica(tiny):
    from trainer.config.dataset import ImageShape
    from trainer.generation.sampler import Sampler
    from trainer.machine import replicas
    from trainer.recipes.networks import build_networks

    config = tiny(recipe="mlp", devices="cpu:2", conditional=True)
    devices = replicas.create_replicas(config)
    numbers = tf.function(lambda: devices.run_on_local_replicas(lambda number: number + 0))()
    assert [number.numpy() for number in numbers] == [0, 1]
    with devices.scope():
        generator, _ = build_networks(config, ImageShape.square(28, 1, 10))
    labels = np.arange(330) % 10
    one = list(Sampler(config, generator).draw(330, 5, labels))
    two = list(Sampler(config, generator, devices).draw(330, 5, labels))
    assert [len(batch) for batch in two] == [100, 100, 100, 30]
    for batch, other in zip(one, two, strict=True):
        np.testing.assert_array_equal(batch, other)


def test_unwritable_run_dir_is_a_usage_error(tiny, run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        run(tiny(run_dir=str(tmp_path / "file" / "run")))


def test_divergence_error_names_the_metrics_and_the_step(tiny, run, monkeypatch):
    broken = dataclasses.replace(OBJECTIVES["hinge"], g_fake=lambda logits: logits / 0.0)
    monkeypatch.setitem(OBJECTIVES, "hinge", broken)
    config = tiny(length=steps(5))
    with pytest.raises(DivergedError, match=r"g_loss, g_grad_norm not finite at step 1, after 1 r"):
        run(config.replace(max_rollbacks=1))
    # Diverged weights are not saved.
    (only,) = list_checkpoints(RunDir(Path(config.run_dir)).checkpoints)
    assert only.name == "ckpt-0"


def test_training_loop_calls_periodic_actions_at_their_steps():
    done, observed, now = [], [], [0.0]

    def run_steps(count):
        now[0] += 0.1 * count
        return np.zeros((count, 1))

    plan = LoopPlan(
        steps=range(3, 20),
        batch_size=4,
        periodic=[
            Periodic(10, lambda step: done.append(("a", step))),
            Periodic(0, lambda step: done.append(("never", step))),
            Periodic(28, lambda step: done.append(("b", step))),
        ],
    )
    functions = LoopFunctions(
        run_steps=run_steps,
        observe=lambda rows, secs: observed.append(len(rows)),
        stop_requested=lambda: False,
    )
    last = train_steps(plan, functions, clock=lambda: now[0])
    assert last == 20
    # Multiples of 10 images (20, 30, 40, ...) are reached after steps 5, 8, 10, 13, 15, 18 and 20.
    assert [s for name, s in done if name == "a"] == [5, 8, 10, 13, 15, 18, 20]
    assert [s for name, s in done if name == "b"] == [7, 14]
    assert sum(observed) == 17
    assert max(observed) <= 5  # half a second at 0.1 s per step


def test_progress_bar_stays_below_printed_lines():
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    terminal = console.Console(stream)
    terminal.bar(0.5, "halfway")
    terminal.line("a line")
    assert stream.getvalue().endswith("\r\x1b[Ka line\n[##########..........] halfway")
    assert [console.duration(s) for s in (7, 754, 3723)] == ["0:07", "12:34", "1:02:03"]
