"""Shows which metrics respond to which known degradations of real images.

    python benchmarks/quality_moves.py mnist --data_dir=DIRECTORY --num=2000

Prints a table with a row for each degradation of the test images and a column for each metric.
Metrics compare with the training images in the features of the data set's classifier.
"""

import argparse
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFilter

from trainer import recipes
from trainer.data import sources
from trainer.data.images import ImageSet
from trainer.evaluation import classifier, reference
from trainer.evaluation.features import extract, in_batches
from trainer.metrics import registry

COLUMNS = tuple(registry.METRICS)


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    def blur(image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius))).reshape(image.shape)

    return np.stack([blur(image) for image in images])


def degraded(
    images: np.ndarray, labels: np.ndarray, training: ImageSet, count: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields degraded test images: the name, the images and the labels assigned to them."""
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, images.shape, np.uint8)
    few = np.flatnonzero(labels < 5)
    few = np.resize(few, count)
    yield "real test images", images, labels
    some = draw.permutation(len(training))[:count]
    yield "real training images", training.images[some], training.labels[some]
    yield "uniform noise", noise, labels
    added = images + draw.normal(0, 40, images.shape)
    yield "with noise of 40 levels", np.clip(added, 0, 255).astype(np.uint8), labels
    yield "blurred by 1 pixel", blurred(images, 1), labels
    yield "blurred by 2 pixels", blurred(images, 2), labels
    yield "half of the classes", images[few], labels[few]
    threes = np.resize(np.flatnonzero(labels == 3), count)
    yield "one class", images[threes], labels[threes]
    tenth = np.arange(count) % (count // 10)
    yield "each image 10 times", images[tenth], labels[tenth]
    one = np.zeros(count, int)
    yield "one image", images[one], labels[one]
    wrong = np.where(draw.random(count) < 0.3, (labels + 1) % 10, labels)
    yield "3 of 10 of another class", images, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", nargs="?", default="digits")
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--num", type=int, default=2000)
    options = parser.parse_args()
    given = dict(dataset=options.dataset, data_dir=options.data_dir)
    config = recipes.resolve(given)
    training, test = sources.load(config), sources.load(config.replace(split="test"))
    network = classifier.load(config, training)
    reals = reference.load(training, "train", network)
    count = min(options.num, len(test))
    chosen = np.random.default_rng(1).permutation(len(test))[:count]
    print(f"{options.dataset}: {count} images, {network.name} {network.digest} {network.details}")
    print(f"{'':26}" + "".join(f"{name[:11]:>12}" for name in COLUMNS))
    for name, images, labels in degraded(test.images[chosen], test.labels[chosen], training, count):
        found = extract(network, in_batches(images))
        values = registry.measure(reals.compare(found, labels, found.logits))
        print(f"{name:26}" + "".join(f"{values[column]:12.4g}" for column in COLUMNS), flush=True)


if __name__ == "__main__":
    main()
