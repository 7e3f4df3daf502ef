"""TensorBoard event files, written without the tensorboard package."""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from PIL import Image

log = logging.getLogger(__name__)

Metadata = tf.compat.v1.SummaryMetadata


class EventWriter:
    """Writes scalars and pictures that TensorBoard shows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failed = False
        self._writer = tf.summary.create_noop_writer()
        with self._unless_the_disk_fails():
            self._writer = tf.summary.create_file_writer(str(folder))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by their tags."""
        with self._unless_the_disk_fails(), self._writer.as_default(step=step):
            for tag, value in values.items():
                tf.summary.write(tag, tf.constant(value, tf.float32), metadata=_SCALAR)

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """Writes a picture; as a summary it is its width, its height and a PNG."""
        png = io.BytesIO()
        picture.save(png, "PNG")
        parts = [str(picture.width).encode(), str(picture.height).encode(), png.getvalue()]
        with self._unless_the_disk_fails(), self._writer.as_default(step=step):
            tf.summary.write(tag, tf.constant(parts), metadata=_IMAGE)

    def flush(self) -> None:
        """Writes all buffered events to the file."""
        with self._unless_the_disk_fails():
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        with self._unless_the_disk_fails():
            self._writer.close()

    @contextlib.contextmanager
    def _unless_the_disk_fails(self) -> Iterator[None]:
        """Ignores write errors after one warning: metrics.jsonl is the authoritative record."""
        try:
            yield
        except tf.errors.OpError as error:
            if not self._failed:
                reason = (str(error).splitlines() or [""])[0]
                log.warning("Nothing more reaches %s (%s).", self._folder, reason)
            self._failed = True


def _metadata(plugin: str, data_class: str) -> Any:
    return Metadata(
        plugin_data=Metadata.PluginData(plugin_name=plugin),
        data_class=data_class,
    )


_SCALAR = _metadata("scalars", "DATA_CLASS_SCALAR")
_IMAGE = _metadata("images", "DATA_CLASS_BLOB_SEQUENCE")
