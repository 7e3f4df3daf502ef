"""TensorBoard event files, written without the tensorboard package."""

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from PIL import Image

from trainer.reporting.lines import EVENTS, SCALARS, Line, Progress
from trainer.reporting.writers import Writer

log = logging.getLogger(__name__)

Metadata = tf.compat.v1.SummaryMetadata


class TensorBoardWriter(Writer):
    """Writes the event files that TensorBoard shows.

    Write errors are ignored after one warning, because metrics.jsonl is the authoritative record.
    """

    def __init__(self, folder: Path) -> None:
        """Opens an event file in `folder`."""
        self._folder = folder
        self._failed = False
        self._writer = tf.summary.create_noop_writer()
        with self._unless_the_disk_fails():
            self._writer = tf.summary.create_file_writer(str(folder))

    def show(self, line: Line, progress: Progress) -> None:
        """Writes the newest line."""
        self._scalars("train", line, (*SCALARS, *EVENTS, "sample_diversity"), line["step"])

    def epoch(self, means: Mapping[str, float], line: Line, secs: float) -> None:
        """Writes the means over an epoch."""
        self._scalars("epoch", means, SCALARS, line["step"])

    def evaluation(self, values: Mapping[str, float], step: int) -> None:
        """Writes the values of an evaluation."""
        self._scalars("quality", values, values, step)

    def picture(self, tag: str, picture: Image.Image, step: int) -> None:
        """Writes a picture; as a summary it is its width, its height and a PNG."""
        png = io.BytesIO()
        picture.save(png, "PNG")
        parts = [str(picture.width).encode(), str(picture.height).encode(), png.getvalue()]
        with self._unless_the_disk_fails(), self._writer.as_default(step=step):
            tf.summary.write(tag, tf.constant(parts), metadata=_IMAGE)

    def _scalars(
        self, group: str, values: Mapping[str, float], names: Iterable[str], step: int
    ) -> None:
        """Writes those values that are not None, tagged with a group."""
        with self._unless_the_disk_fails(), self._writer.as_default(step=step):
            for name in names:
                if values.get(name) is not None:
                    value = tf.constant(values[name], tf.float32)
                    tf.summary.write(f"{group}/{name}", value, metadata=_SCALAR)

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
        """Ignores write errors after one warning."""
        try:
            yield
        except tf.errors.OpError as error:
            if not self._failed:
                reason = (str(error).splitlines() or [""])[0]
                log.warning("TensorBoard files in %s cannot be written (%s).", self._folder, reason)
            self._failed = True


def _metadata(plugin: str, data_class: str) -> Any:
    return Metadata(
        plugin_data=Metadata.PluginData(plugin_name=plugin),
        data_class=data_class,
    )


_SCALAR = _metadata("scalars", "DATA_CLASS_SCALAR")
_IMAGE = _metadata("images", "DATA_CLASS_BLOB_SEQUENCE")
