"""Exported files draw the images that the run draws, with and without this package."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.config.settings import Duration
from trainer.errors import CheckpointError, ExitCode, TrainerError, UsageError
from trainer.generation import export
from trainer.generation.generate import load_generator
from trainer.generation.sampler import BATCH, Sampler, latents
from trainer.machine import replicas
from trainer.run_dir.directory import RunDir

# A program that loads the exported files with TensorFlow but without this package.
PROGRAM = """
import sys
sys.modules["trainer"] = None  # makes its import fail, even if it is installed
import keras, numpy as np, tensorflow as tf
folder, given, out = sys.argv[1:]
given = dict(np.load(given))
serve = tf.saved_model.load(folder + "/saved_model").signatures["serving_default"]
alone = keras.models.load_model(folder + "/generator.keras")
inputs = list(given.values())
np.savez(
    out,
    served=serve(**{name: tf.constant(value) for name, value in given.items()})["images"],
    few=serve(**{name: tf.constant(value[:3]) for name, value in given.items()})["images"],
    alone=alone(inputs if len(inputs) > 1 else inputs[0]),
)
"""


def steps(count):
    return Duration(count, "steps")


def drawn(config, conditional):
    """Returns the inputs and the images uint8 [BATCH, H, W, C] of the run."""
    replicas.create_replicas(config)
    generator, _ = load_generator(RunDir(Path(config.run_dir)), config)
    zero = tf.constant(0, tf.int64)
    labels = np.arange(BATCH, dtype=np.int32)[::-1] % 10 if conditional else None
    images = next(Sampler(config, generator).draw(BATCH, 0, labels))
    given = {"latents": latents(config, zero, zero).numpy()}
    return given if labels is None else {**given, "labels": labels}, images


@pytest.mark.parametrize(
    ("settings", "channels"),
    [
        (dict(recipe="dcgan"), 1),  # conditional, EMA, batch norm, [-1, 1]
        (dict(recipe="dcgan", g_conditioning="batchnorm", precision="bfloat16"), 1),
        (dict(recipe="dcgan-sigmoid", g_weights="spectral"), 1),  # unconditional, [0, 1]
    ],
    ids=["dcgan", "batchnorm-bfloat16", "sigmoid-spectral"],
)
def test_both_formats_draw_the_same_without_this_package(tiny, run, tmp_path, settings, channels):
    config = tiny(**settings, length=steps(4))
    run(config)
    export.export(RunDir(Path(config.run_dir)), config, tmp_path / "out")
    given, images = drawn(config, config.conditional)
    np.savez(tmp_path / "given.npz", **given)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", PROGRAM]
    files = [str(tmp_path / name) for name in ("out", "given.npz", "drawn.npz")]
    answer = subprocess.run(
        [*command, *files], cwd="/", env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    plain = np.load(tmp_path / "drawn.npz")
    assert plain["served"].dtype == np.uint8
    # A normalized kernel is exported in its normalized form, which may differ in the last bit.
    # In bfloat16 a bit is a level of the picture, and on some CPUs another process rounds
    # otherwise.
    levels = np.abs(plain["served"].astype(int) - images)
    assert levels.max() <= ("g_weights" in settings or config.precision == "bfloat16")
    assert levels.mean() < 1e-3
    assert plain["few"].shape == (3, 28, 28, channels)  # any number of images
    low = -1.0 if config.image_range == "tanh" else 0.0
    levels = (plain["alone"] - low) / (1.0 - low) * 255
    assert plain["alone"].dtype == np.float32
    assert np.abs(levels - images).max() < 0.51 + 2.0 * (config.precision == "bfloat16")


def test_the_signature_is_named(tiny, run, tmp_path):
    for recipe, inputs in (
        ("cgan", {"latents": ([None, 100], tf.float32), "labels": ([None], tf.int32)}),
        ("mlp", {"latents": ([None, 100], tf.float32)}),
    ):
        config = tiny(recipe=recipe, length=steps(1), run_dir=str(tmp_path / recipe))
        run(config)
        export.export(RunDir(Path(config.run_dir)), config, tmp_path / recipe / "export")
        loaded = tf.saved_model.load(str(tmp_path / recipe / "export" / "saved_model"))
        signature = loaded.signatures["serving_default"]
        actual = signature.structured_input_signature[1]
        assert {k: (v.shape.as_list(), v.dtype) for k, v in actual.items()} == inputs
        output = signature.structured_outputs["images"]
        assert (output.shape.as_list(), output.dtype) == ([None, 28, 28, 1], tf.uint8)


def test_the_ema_weights_of_the_newest_checkpoint_are_exported(tiny, run, tmp_path):
    config = tiny(recipe="dcgan", length=steps(6), checkpoint_every=steps(3), g_lr=0.05)
    run(config)
    folder = RunDir(Path(config.run_dir))
    export.export(folder, config, tmp_path / "out")
    exported = keras.models.load_model(tmp_path / "out" / "generator.keras").get_weights()
    # The file that training saves at its end contains the EMA weights.
    average = keras.models.load_model(folder.generator).get_weights()
    for one, other in zip(exported, average, strict=True):
        np.testing.assert_array_equal(one, other)
    reader = tf.train.load_checkpoint(str(folder.checkpoints / "ckpt-6"))
    raw = [n for n in reader.get_variable_to_shape_map() if n.startswith("generator/")]
    assert not any(np.array_equal(reader.get_tensor(n), exported[0]) for n in raw)


def test_the_export_command_replaces_files_and_logs_their_use(tiny, run, trainer):
    config = tiny(recipe="cgan", length=steps(1))
    run(config)
    folder = Path(config.run_dir)
    stale = folder / "export" / "saved_model" / "saved_model.pb"  # left by an earlier export
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    answer = trainer("export", f"--run_dir={folder}", "--devices=cpu")
    assert answer.returncode == 0, answer.stderr
    assert len(stale.read_bytes()) > 1000
    assert sorted(p.name for p in (folder / "export").iterdir()) == [
        "generator.keras",
        "saved_model",
    ]
    for text in (
        f"{folder}/export/generator.keras (images float32 [None, 28, 28, 1] in [-1, 1])",
        f"{folder}/export/saved_model\n",
        "serving_default(latents float32 [None, 100], labels int32 [None]) "
        "-> images uint8 [None, 28, 28, 1]",
        '.signatures["serving_default"](latents=latents, labels=labels)["images"]',
    ):
        assert text in answer.stdout, text


@pytest.mark.parametrize("name", ["generator.keras", "saved_model"])
def test_a_file_that_draws_other_images_is_not_exported(tiny, run, tmp_path, monkeypatch, name):
    config = tiny(recipe="cgan", length=steps(1))
    run(config)
    folder, out = RunDir(Path(config.run_dir)), tmp_path / "out"
    generator, _ = load_generator(folder, config)
    other = keras.models.clone_model(generator)  # with initial weights
    if name == "saved_model":
        save = export.save_model
        monkeypatch.setattr(
            export, "save_model", lambda config, _, *rest: save(config, other, *rest)
        )
    else:
        save = keras.Model.save
        monkeypatch.setattr(keras.Model, "save", lambda _, path: save(other, path))
    with pytest.raises(
        TrainerError, match=f"exported {name} does not draw the same images as the run"
    ):
        export.export(folder, config, out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(("tolerance", "difference"), [(0, 1), (1, 2)])
def test_other_images_than_those_of_the_run_are_refused(tolerance, difference):
    """In half precision one level is rounding."""
    expected = np.full([2, 4, 4, 1], 255, np.uint8)
    drawn = expected.copy()
    export._compare("saved_model", drawn, expected, tolerance)
    drawn[0, 0, 0] -= tolerance
    export._compare("saved_model", drawn, expected, tolerance)
    drawn[0, 0, 0] = 255 - difference
    with pytest.raises(TrainerError, match=f"by up to {difference} of 255"):
        export._compare("saved_model", drawn, expected, tolerance)


def test_a_file_that_cannot_be_loaded_is_named(tiny, run, tmp_path, monkeypatch):
    config = tiny(recipe="cgan", length=steps(1))
    run(config)
    monkeypatch.setattr(keras.Model, "save", lambda _, path: path.write_bytes(b"PK"))
    with pytest.raises(
        TrainerError, match=r"exported generator.keras cannot be loaded and run \(.+\)"
    ):
        export.export(RunDir(Path(config.run_dir)), config, tmp_path / "out")


def test_wrong_input_of_export_is_refused(tiny, run, tmp_path, trainer):
    for arguments, message in (
        (["export"], "--run_dir is missing"),
        (["export", "--run_dir=nowhere"], "nowhere is not a run directory: it has no config.json."),
    ):
        answer = trainer(*arguments)
        assert (answer.returncode, answer.stderr.count("\n")) == (ExitCode.USAGE, 1)
        assert message in answer.stderr
    config = tiny(recipe="cgan", length=steps(1))
    run(config)
    folder = RunDir(Path(config.run_dir))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--out=.*file/x cannot be written \(Not a directory\)"):
        export.export(folder, config, tmp_path / "file" / "x")
    for path in folder.checkpoints.iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        export.export(folder, config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_does_not_import_tensorflow():
    code = (
        "import sys; from trainer.__main__ import main; "
        "codes = [main([name, '--help']) for name in ('export', 'doctor', 'generate')]; "
        "sys.exit(any(codes) or 'tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_every_latent_distribution_is_exported(tiny, run, tmp_path, distribution):
    config = tiny(recipe="mlp", length=steps(1), latent_distribution=distribution)
    run(config)
    export.export(RunDir(Path(config.run_dir)), config, tmp_path / "out")
    assert (tmp_path / "out/saved_model/saved_model.pb").exists()


def test_signatures_check_the_labels(tiny, run, tmp_path):
    config = tiny(recipe="cgan", length=steps(1))
    run(config)
    export.export(RunDir(Path(config.run_dir)), config, tmp_path / "out")
    signatures = tf.saved_model.load(str(tmp_path / "out/saved_model")).signatures
    latent = tf.zeros([2, config.latent_dim])
    short = signatures["serving_default"](latents=latent, labels=tf.constant([3, 9]))["images"]
    labels = tf.constant([3, 9], tf.int64)
    long = signatures["int64_labels"](latents=latent, labels=labels)["images"]
    np.testing.assert_array_equal(short, long)
    for wrong in (-1, 10, 42):
        with pytest.raises(tf.errors.InvalidArgumentError, match="Labels must be from 0 to 9"):
            signatures["serving_default"](latents=latent, labels=tf.constant([3, wrong]))
