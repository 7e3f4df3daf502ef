"""Loads data sets: named ones from --data_dir or a download, and the user's own."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np

from trainer.config import Config
from trainer.data import formats, user_images
from trainer.data.formats import Arrays
from trainer.data.images import ImageSet, check, resize
from trainer.data.user_images import Report
from trainer.errors import DataError, StorageError, UsageError, one_of
from trainer.machine import imports, memory
from trainer.storage import dataset_download
from trainer.storage.address import is_bucket
from trainer.storage.location import cache_folder

log = logging.getLogger(__name__)

DIGITS = tuple(str(digit) for digit in range(10))
CLOTHES = (
    "top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)
OBJECTS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
IDX_NAMES = {"train": "train", "test": "t10k"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A named data set.

    Attributes:
      size: default image size in pixels, used without --image_size.
      class_names: class names in the order of the labels.
      files: description of the published files, for error messages.
      origin: where the files are published.
      find: function that reads the splits from a folder, or returns None if the files are
        missing.
      fetch: name of the download under keras.datasets; "" if there is none.
      wanted: file name patterns to download when --data_dir is a bucket.
    """

    size: int
    class_names: tuple[str, ...]
    files: str
    origin: str
    find: Callable[[Path, tuple[str, ...]], Arrays | None]
    fetch: str = ""
    wanted: tuple[str, ...] = ()


def load(config: Config, report: Report = lambda share, what: None) -> ImageSet:
    """Returns the images and labels of `config.dataset` at the configured image size.

    Args:
      config: configuration of the run.
      report: called during long operations with the completed share in [0, 1] and a
        description of the operation.

    Raises:
      UsageError: if the data set is unknown.
      DataError: if it is missing, damaged or smaller than a batch.
    """
    if config.dataset not in SOURCES and user_images.is_path(config.dataset):
        data = user_images.load(config, report)
    else:
        data = _load_named(config, report)
    if len(data) < config.batch_size:
        raise DataError(
            f"--dataset={config.dataset} --split={config.split} has {len(data)} images, fewer "
            f"than --batch_size={config.batch_size}: lower the batch size."
        )
    return data


def settle(config: Config, data: ImageSet, *, asked: bool = False) -> Config:
    """Returns the configuration, made unconditional if the data have fewer than two classes.

    Args:
      config: configuration of the run.
      data: images of the run.
      asked: whether the user, rather than the recipe, set --conditional.

    Raises:
      DataError: if the user set --conditional and the data do not allow it.
    """
    if not config.conditional or data.shape.classes > 1:
        return config
    found = "has one class" if data.shape.classes else "has no labels"
    if asked:
        raise DataError(
            f"--conditional: --dataset={config.dataset} {found}: sort the pictures into two or "
            "more class folders, or give --noconditional."
        )
    log.info("--dataset=%s %s: training without (--noconditional)", config.dataset, found)
    return config.replace(conditional=False)


def _load_named(config: Config, report: Report) -> ImageSet:
    source = SOURCES[one_of("--dataset", config.dataset, SOURCES)]
    splits = ("train", "test") if config.split == "all" else (config.split,)
    data_dir = config.data_dir
    if is_bucket(data_dir) and source.fetch:
        data_dir = str(
            dataset_download.fetch(
                data_dir, "data_dir", cache_folder("data"), report, source.wanted
            )
        )
    images, labels = _read(config.dataset, source, splits, data_dir)
    check(images, labels, len(source.class_names), config.dataset)
    size = config.image_size or source.size
    if size != images.shape[1]:
        memory.check_fits(f"--dataset={config.dataset}", len(images), size, images.shape[-1])
    images = resize(images, size)
    return ImageSet(images, labels, source.class_names)


def _read(name: str, source: Source, splits: tuple[str, ...], data_dir: str) -> Arrays:
    if data_dir and not Path(data_dir).is_dir():
        raise UsageError(
            f"--data_dir={data_dir} is not a folder. Set --data_dir to an existing folder."
        )
    found = source.find(Path(data_dir), splits) if data_dir or not source.fetch else None
    return found if found is not None else _download(name, source, splits, data_dir)


def _download(name: str, source: Source, splits: tuple[str, ...], data_dir: str) -> Arrays:
    with imports.quiet():
        import keras  # imported late: it takes seconds and is only needed for downloads

    log.info("Downloading %s from %s", name, source.origin)
    try:
        with contextlib.redirect_stdout(
            sys.stderr
        ):  # keeps Keras's progress bar off stdout, which may carry JSON
            loaded = getattr(keras.datasets, source.fetch).load_data()
        parts = dict(zip(("train", "test"), loaded))
    except Exception as error:  # network failures raise many types
        reason = " ".join(str(error).split())
        where = f"in --data_dir={data_dir}" if data_dir else "in a folder named by --data_dir"
        raise StorageError(  # another try may succeed
            f"--dataset={name} was not found locally and its download failed ({reason}). "
            f"Put {source.files} {where}; it comes from {source.origin}."
        ) from None
    images = np.concatenate([parts[split][0] for split in splits])
    labels = np.concatenate([parts[split][1] for split in splits]).reshape(-1)
    return images if images.ndim == 4 else images[..., None], labels.astype(np.int32)


def _find_digits(_: Path, splits: tuple[str, ...]) -> Arrays:
    with resources.as_file(resources.files(__package__) / "digits.npz") as path:
        return formats.read_npz(path, splits)


def _find_npz_or_idx(folders: tuple[str, ...], npz: str = "") -> Callable[..., Arrays | None]:
    def find(data_dir: Path, splits: tuple[str, ...]) -> Arrays | None:
        """Returns the images and labels of the splits, or None if files are missing."""
        if npz and (data_dir / npz).is_file():
            return formats.read_npz(data_dir / npz, splits)
        for folder in folders:
            pairs = [
                tuple(
                    data_dir / folder / f"{IDX_NAMES[split]}-{kind}-ubyte.gz"
                    for kind in ("images-idx3", "labels-idx1")
                )
                for split in splits
            ]
            if all(path.is_file() for pair in pairs for path in pair):
                images, labels = zip(*[formats.read_idx_pair(*pair) for pair in pairs])
                return np.concatenate(images), np.concatenate(labels)
        return None

    return find


def _find_cifar10(data_dir: Path, splits: tuple[str, ...]) -> Arrays | None:
    files = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
    names = [name for split in splits for name in files[split]]
    for path in (data_dir / "cifar-10-batches-py", data_dir / "cifar-10-python.tar.gz"):
        if path.exists():
            return formats.read_cifar(path, names)
    return None


SOURCES = {
    "digits": Source(28, DIGITS, "", "the UCI machine learning repository", _find_digits),
    "mnist": Source(
        28,
        DIGITS,
        "mnist.npz, or train- and t10k- images-idx3-ubyte.gz and labels-idx1-ubyte.gz",
        "keras.datasets.mnist (http://yann.lecun.com/exdb/mnist)",
        # The IDX files of MNIST and Fashion-MNIST have the same names, so a folder
        # named after the data set takes precedence.
        _find_npz_or_idx(("mnist", "MNIST", "."), "mnist.npz"),
        "mnist",
        ("mnist.npz", "*-ubyte.gz"),
    ),
    "fashion_mnist": Source(
        28,
        CLOTHES,
        "fashion-mnist/ with train- and t10k- images-idx3-ubyte.gz and labels-idx1-ubyte.gz",
        "keras.datasets.fashion_mnist (https://github.com/zalandoresearch/fashion-mnist)",
        _find_npz_or_idx(("fashion-mnist", "fashion_mnist", "."), "fashion_mnist.npz"),
        "fashion_mnist",
        ("fashion_mnist.npz", "*-ubyte.gz"),
    ),
    "cifar10": Source(
        32,
        OBJECTS,
        "cifar-10-batches-py/ or cifar-10-python.tar.gz",
        "keras.datasets.cifar10 (https://www.cs.toronto.edu/~kriz/cifar.html)",
        _find_cifar10,
        "cifar10",
        ("cifar-10-batches-py/*", "cifar-10-python.tar.gz"),
    ),
}
