"""The handwritten digits of the UCI repository, which are part of this package."""

from importlib import resources
from pathlib import Path

from trainer.data import formats
from trainer.data.formats import Arrays
from trainer.data.named.source import Source


def _read(_: Path, splits: tuple[str, ...]) -> Arrays:
    with resources.as_file(resources.files("trainer.data") / "digits.npz") as path:
        return formats.read_npz(path, splits)


SOURCE = Source(
    image_size=28,
    class_names=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    read=_read,
    origin="the UCI machine learning repository",
)
