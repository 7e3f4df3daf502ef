"""Whole runs of `sngan` and `r3gan`: number formats, replicas, exported files and evaluations.

The cases combine each pair of a recipe, a number format, a number of replicas and a batch that is
processed at once or in parts.  test_kills.py kills and resumes such runs.
"""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.inception_graph import small_graph
from tests.helpers.runs import TINY_FLAGS, Process, records, steps
from trainer import api
from trainer.evaluation import inception
from trainer.generation import export
from trainer.generation.generate import load_generator
from trainer.generation.sampler import BATCH, Sampler, latents
from trainer.machine import replicas
from trainer.run_dir.directory import RunDir


@pytest.mark.parametrize(
    ("recipe", "precision", "devices", "rows", "conditional"),
    [
        ("sngan", "float32", "cpu:1", 0, True),
        ("sngan", "bfloat16", "cpu:2", 0, False),
        ("sngan", "float16", "cpu:2", 2, True),
        ("r3gan", "float32", "cpu:2", 2, False),
        ("r3gan", "bfloat16", "cpu:1", 4, True),
        ("r3gan", "float16", "cpu:1", 0, True),
    ],
)
def test_a_run_trains_and_is_exported_and_evaluated(
    tiny, run, tmp_path, recipe, precision, devices, rows, conditional
):
    given = {} if (recipe, precision) == ("r3gan", "float16") else dict(augment="none")
    if recipe == "r3gan":
        given["hyperparameters"] = "blocks=1"
    config = tiny(
        **given, recipe=recipe, precision=precision, devices=devices, batch_per_replica=rows,
        conditional=conditional, image_size=8, d_steps=1, ema_half_life_kimg=0.05,
        log_every_steps=1, length=steps(2),
    )  # fmt: skip
    run(config)
    assert all(np.isfinite(line["d_loss"]) for line in records(config.run_dir))

    folder = RunDir(Path(config.run_dir))
    export.export(folder, config, tmp_path / "out")
    replicas.create_replicas(config)
    generator, _ = load_generator(folder, config)
    labels = np.arange(BATCH, dtype=np.int32) % 10 if conditional else None
    images = next(Sampler(config, generator).draw(BATCH, 0, labels))
    assert images.shape == (BATCH, 8, 8, 1)
    zero = tf.constant(0, tf.int64)
    inputs = {"latents": latents(config, zero, zero)}
    if conditional:
        inputs["labels"] = tf.constant(labels)
    loaded = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
    served = loaded.signatures["serving_default"](**inputs)["images"].numpy()
    # Two programs in half precision may round differently.
    levels = 0 if precision == "float32" else 1
    assert np.abs(served.astype(np.int16) - images).max() <= levels
    graph = loaded.signatures["serving_default"].graph
    # A grouped convolution of Keras would need a server that has XLA.
    functions = graph.as_graph_def().library.function
    assert not any("_XlaMustCompile" in f.attr for f in functions)

    if devices == "cpu:1":
        graph_file = tmp_path / inception.GRAPH
        graph_file.write_bytes(small_graph())
        trained = api.load(config.run_dir, devices=devices)
        assert trained.evaluate(num_samples=100, inception_path=str(graph_file))["fid"] > 0


@pytest.mark.faults  # tracing four replicas takes long
@pytest.mark.parametrize(
    ("recipe", "precision", "rows", "conditional"),
    [
        ("r3gan", "float32", 0, True),
        ("sngan", "float16", 1, False),
        ("r3gan", "bfloat16", 1, False),
    ],
)
def test_a_run_trains_on_four_replicas(tmp_path, trainer, recipe, precision, rows, conditional):
    """In processes of their own: TensorFlow confuses sets of devices of different sizes."""
    own = {"sngan": ["--d_steps=1"], "r3gan": ["--hyperparameters=blocks=1", "--augment=none"]}
    training = Process(
        tmp_path, *TINY_FLAGS, *own[recipe], f"--recipe={recipe}", f"--precision={precision}",
        f"--batch_per_replica={rows}", f"--conditional={conditional}", "--devices=cpu:4",
        "--image_size=8", "--log_every_steps=1", "--steps=2",
    )  # fmt: skip
    assert training.wait() == 0, training.output
    lines = records(tmp_path / "run")
    assert lines[-1]["step"] == 2
    assert all(np.isfinite(line["d_loss"]) for line in lines)
    (tmp_path / inception.GRAPH).write_bytes(small_graph())
    given = f"--inception_path={inception.GRAPH}"
    for arguments in (
        ("evaluate", "--num_samples=100", given), ("generate", "--num=4", "--out=grid.png")
    ):  # fmt: skip
        done = trainer(*arguments, "--run_dir=run", "--devices=cpu:4")
        assert done.returncode == 0, done.stderr
