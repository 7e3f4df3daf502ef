"""A run's generator for use without this package: a Keras file and a SavedModel.

Both are written beside their place, loaded again, held against what the run draws, and
only then put in place: what --out holds is complete and draws right.
"""

import logging
import os
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.errors import StorageError, TrainerError, UsageError, first_line
from trainer.generation import sampler
from trainer.generation.generate import load_drawing
from trainer.machine import replicas
from trainer.models.plain import plain
from trainer.run_dir.directory import RunDir
from trainer.storage import output_copies

log = logging.getLogger(__name__)

KERAS_FILE = "generator.keras"
SAVED_MODEL = "saved_model"
MODEL = "saved_model.pb"  # in it
SIGNATURE = "serving_default"


def export(run_dir: RunDir, config: Config, out: Path, which: str = "") -> None:
    """Writes the generator that the run draws from into the folder `out`, in both forms.

    Args:
      run_dir: the run.
      config: its configuration, with the devices to check the files on.
      out: the folder; what an earlier export left there is replaced.
      which: the checkpoint, as of `selection.load`.

    Raises:
      TrainerError: if the run has no checkpoint, `out` cannot be written, or a file does
        not draw what the run draws.
    """
    # The same bits are asked of three graphs: the kernels must not be chosen by their speed.
    replicas.create_replicas(config.replace(deterministic=True))
    drawing, source = load_drawing(run_dir, config, which)
    generator = plain(drawing)
    labels = None
    if config.conditional:
        labels = np.arange(sampler.BATCH, dtype=np.int32) % run_dir.read_dataset().classes
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as name:
            scratch = Path(name)
            generator.save(scratch / KERAS_FILE)
            save_model(config, generator, scratch / SAVED_MODEL)
            check(config, generator, labels, scratch)
            _put_in_place(scratch, out)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UsageError(f"--out={out} cannot be written ({reason}).") from None
    _report(config, generator, source, out)


def is_delivered(config: Config) -> bool:
    """Whether there is nothing to bring to --model_dir: it has a model, or is not asked for."""
    return not config.model_dir or output_copies.has_file(config.model_dir, "model_dir", MODEL)


def deliver(run_dir: RunDir, config: Config) -> None:
    """Writes the SavedModel of a complete run into --model_dir.

    Raises:
      TrainerError: if that cannot be written.
    """
    drawing, source = load_drawing(run_dir, config, "")
    with tempfile.TemporaryDirectory(prefix="gan-trainer-model-") as name:
        try:
            save_model(config, plain(drawing), Path(name))
        except OSError as error:
            raise StorageError(f"{name} cannot be written ({error}).") from None
        output_copies.copy_folder(Path(name), config.model_dir, "model_dir", last=MODEL)
    log.info("The generator of %s is in %s for a server", source, config.model_dir)


def save_model(config: Config, generator: keras.Model, folder: Path) -> None:
    """Writes a SavedModel with one signature: latents, labels if conditional -> images uint8.

    Raises:
      OSError: if it cannot be written.
    """

    def serve(latents: tf.Tensor, labels: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        return {"images": sampler.draw_bytes(config, generator, latents, labels)}

    inputs = [tf.TensorSpec([None, config.latent_dim], tf.float32, name="latents")]
    if config.conditional:
        inputs.append(tf.TensorSpec([None], tf.int32, name="labels"))
    # Plain variables, not the Keras model, whose classes a reader would need to have.
    module = tf.Module()
    module.weights = [variable.value for variable in generator.variables]
    module.serve = tf.function(serve, input_signature=inputs, autograph=False)
    try:
        tf.saved_model.save(module, str(folder), signatures={SIGNATURE: module.serve})
    except tf.errors.OpError as error:  # TensorFlow's name for a full disk
        raise OSError(first_line(error)) from None


def check(config: Config, generator: keras.Model, labels: np.ndarray | None, folder: Path) -> None:
    """Loads both forms from `folder` and holds what they draw against `generator`.

    Args:
      config: the run's.
      generator: what the run draws from.
      labels: [BATCH] int32, the classes to draw, if the run is conditional.
      folder: where both forms are.

    Raises:
      TrainerError: naming the form that does not draw the same bytes.
    """
    first = tf.constant(0, tf.int64)
    inputs = {"latents": sampler.latents(config, first, first)}
    if labels is not None:
        inputs["labels"] = tf.constant(labels)

    def draw(network: keras.Model) -> np.ndarray:
        return next(sampler.Sampler(config, network).draw(sampler.BATCH, 0, labels))

    def serve(path: Path) -> np.ndarray:
        return tf.saved_model.load(str(path)).signatures[SIGNATURE](**inputs)["images"].numpy()

    wanted = draw(generator)
    for name, draw_again in (
        (KERAS_FILE, lambda path: draw(keras.models.load_model(path))),
        (SAVED_MODEL, serve),
    ):
        try:
            drawn = draw_again(folder / name)
        except Exception as error:  # of any kind: readers of files raise what they like
            reason = first_line(error)
            raise TrainerError(f"The exported {name} cannot be used again ({reason}).") from error
        _compare(name, drawn, wanted)


def _compare(name: str, drawn: np.ndarray, wanted: np.ndarray) -> None:
    """Raises a TrainerError unless both, uint8 [N, H, W, C], are the same."""
    if np.array_equal(drawn, wanted):
        return
    what = f"shape {list(drawn.shape)} for {list(wanted.shape)}"
    if drawn.shape == wanted.shape:
        levels = np.abs(drawn.astype(np.int16) - wanted)
        what = f"{np.mean(levels > 0):.2%} of the bytes differ, by up to {levels.max()} of 255"
    raise TrainerError(
        f"The exported {name} does not draw what the run draws ({what}): nothing was "
        "exported; --devices=cpu leaves out what a GPU rounds."
    )


def _put_in_place(scratch: Path, out: Path) -> None:
    """Moves all files below `scratch` to the same place below `out`."""
    for path in sorted(scratch.rglob("*")):
        target = out / path.relative_to(scratch)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            os.replace(path, target)


def _report(config: Config, generator: keras.Model, source: Path, out: Path) -> None:
    """Names what was written, what it takes and how to call it."""
    side, _, channels = generator.output.shape[1:]
    form = f"[None, {side}, {side}, {channels}]"
    takes, given = f"latents float32 [None, {config.latent_dim}]", "latents=latents"
    if config.conditional:
        takes, given = f"{takes}, labels int32 [None]", f"{given}, labels=labels"
    low = {"tanh": "-1", "sigmoid": "0"}[config.image_range]
    drawn = {"normal": "N(0, 1)", "uniform": "uniform on [-1, 1]"}[config.latent_distribution]
    loaded = f'tf.saved_model.load("{out / SAVED_MODEL}").signatures["{SIGNATURE}"]'
    log.info("Exported %s; both forms draw the bytes that the run draws.", source)
    for what, text in (
        ("Keras file", f"{out / KERAS_FILE} (images float32 {form} in [{low}, 1])"),
        ("SavedModel", str(out / SAVED_MODEL)),
        ("Signature", f"{SIGNATURE}({takes}) -> images uint8 {form}"),
        ("Latents", drawn),
        ("Call it as", f'{loaded}({given})["images"]'),
    ):
        log.info("%-12s%s", what, text)
