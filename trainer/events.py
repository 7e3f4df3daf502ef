"""TensorBoard event files, written without the tensorboard package."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from PIL import Image

Metadata = tf.compat.v1.SummaryMetadata


class EventWriter:
    """Writes scalars and pictures that TensorBoard shows."""

    def __init__(self, folder: Path) -> None:
        self._writer = tf.summary.create_file_writer(str(folder))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by their tags."""
        with self._writer.as_default(step=step):
            for tag, value in values.items():
                tf.summary.write(tag, tf.constant(value, tf.float32), metadata=_SCALAR)

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """Writes a picture; as a summary it is its width, its height and a PNG."""
        png = io.BytesIO()
        picture.save(png, "PNG")
        parts = [str(picture.width).encode(), str(picture.height).encode(), png.getvalue()]
        with self._writer.as_default(step=step):
            tf.summary.write(tag, tf.constant(parts), metadata=_IMAGE)

    def flush(self) -> None:
        """Brings all to the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()


def _metadata(plugin: str, data_class: str) -> Any:
    return Metadata(
        plugin_data=Metadata.PluginData(plugin_name=plugin),
        data_class=data_class,
    )


_SCALAR = _metadata("scalars", "DATA_CLASS_SCALAR")
_IMAGE = _metadata("images", "DATA_CLASS_BLOB_SEQUENCE")
