"""Exports the generator of a run as a Keras file and a SavedModel, for use without this package.

Both are written to a temporary folder, loaded again and compared with what the run draws.  They
are moved to --out only afterwards, so exported files are complete and draw the right images.
"""

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data import form
from trainer.errors import StorageError, TrainerError, UsageError, first_line
from trainer.generation import sampler
from trainer.generation.generate import load_generator
from trainer.machine import replicas
from trainer.models.plain import plain
from trainer.run_dir.directory import RunDir
from trainer.storage import output_copies

log = logging.getLogger(__name__)

KERAS_FILE = "generator.keras"
SAVED_MODEL = "saved_model"
MODEL_FILE = "saved_model.pb"  # the file in a SavedModel that contains its graph
SIGNATURE = "serving_default"
INT64_SIGNATURE = "int64_labels"  # TensorFlow does not cast labels of another type itself
DISTRIBUTIONS = {
    "normal": "N(0, 1)",
    "uniform": "uniform on [-1, 1]",
    "truncated_normal": "N(0, 1), truncated at 2 standard deviations",
}


def export(run_dir: RunDir, config: Config, out: Path, which: str = "") -> None:
    """Exports the generator that the run draws from to the folder `out`, in both formats.

    Args:
      run_dir: the run directory.
      config: the configuration of the run, with the device to verify the files on.
      out: the folder; files of an earlier export are replaced.
      which: the checkpoint, as for `selection.load`.

    Raises:
      TrainerError: if the checkpoint cannot be loaded, `out` cannot be written, or a file
        does not draw the same images as the run.
    """
    # Three graphs must draw the same bytes, so kernels must not be selected by their speed.
    replicas.create_replicas(config.replace(deterministic=True))
    run_generator, source = load_generator(run_dir, config, which)
    exported = {
        KERAS_FILE: plain(run_generator),
        SAVED_MODEL: plain(run_generator, keras_only=False),
    }
    labels, classes = None, run_dir.read_dataset().classes
    if config.conditional:
        labels = np.arange(sampler.BATCH, dtype=np.int32) % classes
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as name:
            scratch = Path(name)
            exported[KERAS_FILE].save(scratch / KERAS_FILE)
            save_model(config, exported[SAVED_MODEL], scratch / SAVED_MODEL, classes)
            verify_export(config, exported, labels, scratch)
            _move_files(scratch, out)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UsageError(
            f"--out={out} cannot be written ({reason}). Choose another folder."
        ) from None
    _log_export(config, run_generator, source, out)


def is_exported_to_model_dir(config: Config) -> bool:
    """Returns whether --model_dir is not set, or has a SavedModel already."""
    return not config.model_dir or output_copies.has_file(config.model_dir, "model_dir", MODEL_FILE)


def export_to_model_dir(run_dir: RunDir, config: Config) -> None:
    """Exports the generator of a complete run as a SavedModel to --model_dir.

    Raises:
      TrainerError: if --model_dir cannot be written.
    """
    generator, source = load_generator(run_dir, config)
    with tempfile.TemporaryDirectory(prefix="gan-trainer-model-") as name:
        try:
            classes = run_dir.read_dataset().classes
            save_model(config, plain(generator, keras_only=False), Path(name), classes)
        except OSError as error:
            raise StorageError(
                f"The temporary folder {name} cannot be written ({error}). Free disk space or set "
                "TMPDIR to another folder."
            ) from None
        output_copies.copy_folder(Path(name), config.model_dir, "model_dir", last=MODEL_FILE)
    log.info("Exported the generator of %s to --model_dir=%s", source, config.model_dir)


def save_model(config: Config, generator: keras.Model, folder: Path, classes: int) -> None:
    """Writes a SavedModel with the signature latents, labels if conditional -> images uint8.

    A conditional generator has a second signature, for labels of type int64.  Labels that are no
    class of the run raise an error.

    Args:
      config: the configuration of the run.
      generator: the generator, a copy by `plain`.
      folder: the folder to write.
      classes: number of classes of the data set.

    Raises:
      OSError: if the SavedModel cannot be written.
    """

    def serve(latents: tf.Tensor, labels: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        if labels is None:
            return {"images": visible(sampler.draw_bytes(config, generator, latents, None))}
        in_range = tf.logical_and(labels >= 0, labels < tf.constant(classes, labels.dtype))
        message = f"Labels must be from 0 to {classes - 1}."
        with tf.control_dependencies([tf.debugging.assert_equal(in_range, True, message)]):
            labels = tf.cast(labels, tf.int32)
        return {"images": visible(sampler.draw_bytes(config, generator, latents, labels))}

    inputs = [tf.TensorSpec([None, config.latent_dim], tf.float32, name="latents")]
    types = {SIGNATURE: tf.int32, INT64_SIGNATURE: tf.int64} if config.conditional else {}
    # Plain variables instead of the Keras model, because loading that needs its classes.
    module = tf.Module()
    module.weights = [variable.value for variable in generator.variables]
    signatures = {
        name: tf.function(
            serve,
            input_signature=[*inputs, tf.TensorSpec([None], dtype, name="labels")],
            autograph=False,
        )
        for name, dtype in types.items()
    } or {SIGNATURE: tf.function(serve, input_signature=inputs, autograph=False)}
    module.signature_functions = list(signatures.values())
    try:
        tf.saved_model.save(module, str(folder), signatures=signatures)
    except tf.errors.OpError as error:  # raised if the disk is full
        raise OSError(first_line(error)) from None


def visible(images: tf.Tensor) -> tf.Tensor:
    """Converts images as `form.visible` does, in TensorFlow."""
    if images.shape[-1] != 4:
        return images
    wide = tf.cast(images, tf.int32)
    alpha = wide[..., 3:]
    colours = tf.minimum(wide[..., :3], alpha) * form.OPAQUE
    colours = (colours + alpha // 2) // tf.maximum(alpha, 1)
    return tf.cast(tf.concat([colours, alpha], -1), tf.uint8)


def verify_export(
    config: Config, exported: Mapping[str, keras.Model], labels: np.ndarray | None, folder: Path
) -> None:
    """Loads both formats from `folder` and compares what they draw with what was exported.

    Args:
      config: the configuration of the run.
      exported: the generator that was exported, by format.
      labels: [BATCH] int32, classes to draw; None for an unconditional run.
      folder: the folder with both formats.

    Raises:
      TrainerError: if a format cannot be loaded or does not draw the same bytes, in half precision
        up to one level of 255.
    """
    first = tf.constant(0, tf.int64)
    inputs = {"latents": sampler.latents(config, first, first)}
    if labels is not None:
        inputs["labels"] = tf.constant(labels)

    def draw(network: keras.Model) -> np.ndarray:
        images = next(sampler.Sampler(config, network).draw(sampler.BATCH, 0, labels))
        return form.visible(images)

    def serve(path: Path) -> np.ndarray:
        return tf.saved_model.load(str(path)).signatures[SIGNATURE](**inputs)["images"].numpy()

    for name, draw_exported in (
        (KERAS_FILE, lambda path: draw(keras.models.load_model(path))),
        (SAVED_MODEL, serve),
    ):
        try:
            drawn = draw_exported(folder / name)
        except Exception as error:  # readers of damaged files raise errors of many types
            reason = first_line(error)
            raise TrainerError(
                f"The exported {name} cannot be loaded and run ({reason})."
            ) from error
        # In half precision two programs may round differently, such as on CPUs with AVX512-FP16.
        is_half = any(
            layer.compute_dtype in ("float16", "bfloat16") for layer in exported[name].layers
        )
        _compare(name, drawn, draw(exported[name]), tolerance=int(is_half))


def _compare(name: str, drawn: np.ndarray, expected: np.ndarray, tolerance: int) -> None:
    """Raises a TrainerError unless both arrays, uint8 [N, H, W, C], are equal.

    Args:
      name: the format, for the message.
      drawn: what the exported file draws.
      expected: what the run draws.
      tolerance: by how many levels of 255 they may differ.

    Raises:
      TrainerError: if they differ by more.
    """
    if drawn.shape == expected.shape and np.all(
        np.abs(drawn.astype(np.int16) - expected) <= tolerance
    ):
        return
    difference = f"shape {list(drawn.shape)} instead of {list(expected.shape)}"
    if drawn.shape == expected.shape:
        levels = np.abs(drawn.astype(np.int16) - expected)
        difference = (
            f"{np.mean(levels > 0):.2%} of the bytes differ, by up to {levels.max()} of 255"
        )
    raise TrainerError(
        f"The exported {name} does not draw the same images as the run ({difference}). Nothing "
        "was exported. Use --devices=cpu to exclude rounding differences of a GPU."
    )


def _move_files(scratch: Path, out: Path) -> None:
    """Moves all files below `scratch` to the same relative paths below `out`."""
    for path in sorted(scratch.rglob("*")):
        target = out / path.relative_to(scratch)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            os.replace(path, target)


def _log_export(config: Config, generator: keras.Model, source: Path, out: Path) -> None:
    """Logs the exported files, the signature, and how to call it."""
    height, width, channels = generator.output.shape[1:]
    shape = f"[None, {height}, {width}, {channels}]"
    inputs, arguments = f"latents float32 [None, {config.latent_dim}]", "latents=latents"
    if config.conditional:
        inputs, arguments = f"{inputs}, labels int32 [None]", f"{arguments}, labels=labels"
    alpha = ", colours multiplied by alpha" if channels == 4 else ""
    low = {"tanh": "-1", "sigmoid": "0"}[config.image_range]
    signature = f'tf.saved_model.load("{out / SAVED_MODEL}").signatures["{SIGNATURE}"]'
    log.info("Exported %s. Both formats draw the images that the run draws.", source)
    for title, text in (
        ("Keras file", f"{out / KERAS_FILE} (images float32 {shape} in [{low}, 1]{alpha})"),
        ("SavedModel", str(out / SAVED_MODEL)),
        ("Signature", f"{SIGNATURE}({inputs}) -> images uint8 {shape}"),
        ("Latents", DISTRIBUTIONS[config.latent_distribution]),
        ("Call it as", f'{signature}({arguments})["images"]'),
        ("int64 labels", f"signature {INT64_SIGNATURE}" if config.conditional else ""),
    ):
        if text:
            log.info("%-14s%s", title, text)
