"""CIFAR-10: colour photographs of animals and vehicles."""

from pathlib import Path

from trainer.data import formats
from trainer.data.formats import Arrays
from trainer.data.named.source import Source

BATCH_FILES = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}


def _read(data_dir: Path, splits: tuple[str, ...]) -> Arrays | None:
    names = [name for split in splits for name in BATCH_FILES[split]]
    for path in (data_dir / "cifar-10-batches-py", data_dir / "cifar-10-python.tar.gz"):
        if path.exists():
            return formats.read_cifar(path, names)
    return None


SOURCE = Source(
    image_size=32,
    channels=3,
    class_names=(
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
    ),
    read=_read,
    origin="keras.datasets.cifar10 (https://www.cs.toronto.edu/~kriz/cifar.html)",
    files="cifar-10-batches-py/ or cifar-10-python.tar.gz",
    keras_name="cifar10",
    bucket_patterns=("cifar-10-batches-py/*", "cifar-10-python.tar.gz"),
)
