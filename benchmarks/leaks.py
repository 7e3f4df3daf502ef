"""Whether the transformations of an augmentation appear among the samples.

    python -m benchmarks.leaks --data_dir=DIRECTORY --kimg=100

Trains `dcgan` on MNIST with quarter turns and mirrored images at several fixed strengths, and
counts the samples that a classifier of orientation takes for turned or mirrored digits.  The
classifier learned to tell the eight orientations of training images.  Its errors on upright test
images, and its count without augmentation, are what the other counts compare with.
"""

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks import harness
from trainer import api
from trainer.data import sources
from trainer.data.images import ImageSet

CLASSES = (4, 7)  # digits that are no other digit, nor the same one, in any other orientation
STRENGTHS = (0.0, 0.5, 0.8, 1.0)


def oriented(images: np.ndarray, orientation: int) -> np.ndarray:
    """Returns images [N, H, W, C] turned by a multiple of 90 degrees and mirrored from 4 on."""
    turned = np.rot90(images, orientation % 4, (1, 2))
    return turned[:, :, ::-1] if orientation >= 4 else turned


def classifier(data: ImageSet, epochs: int = 3) -> keras.Model:
    """Returns a network that tells the orientation of images [N, H, W, C] in [0, 1]."""
    keras.utils.set_random_seed(0)
    images = data.images[np.isin(data.labels, CLASSES)]
    network = keras.Sequential([
        keras.Input(images.shape[1:]),
        keras.layers.Rescaling(1 / 255),
        keras.layers.GaussianNoise(0.2),  # generated images are less clean than real ones
        keras.layers.Conv2D(32, 3, 2, activation="relu"),
        keras.layers.Conv2D(64, 3, 2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(8),
    ])  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(1e-3), loss)
    every = np.concatenate([oriented(images, k) for k in range(8)])
    network.fit(every, np.repeat(np.arange(8), len(images)), 256, epochs, verbose=0)
    return network


def share_turned(network: keras.Model, images: np.ndarray) -> float:
    """Returns the share of images whose orientation is not that of upright images."""
    return float(np.mean(network.predict(images, verbose=0, batch_size=500).argmax(1) != 0))


def row(network: keras.Model, strength: float, kimg: float, data_dir: str, num: int) -> Any:
    """Trains a run and returns its row."""
    augmentation: dict[str, Any] = (
        dict(augment="ada", augment_policy="xflip,rotate90", augment_strength=strength)
        if strength
        else {}
    )
    with tempfile.TemporaryDirectory() as folder:
        run = api.train(
            dataset="mnist", data_dir=data_dir, kimg=kimg, run_dir=str(Path(folder) / "run"),
            sample_every=0.0, **augmentation,
        )  # fmt: skip
        drawn = run.sample(num, [CLASSES[k % len(CLASSES)] for k in range(num)])
        fid = run.evaluate(num_samples=5000)["fid"]
    return {
        "strength": strength,
        "turned_or_mirrored_%": 100 * share_turned(network, drawn),
        "fid": fid,
    }


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--kimg", type=float, default=100.0)
    parser.add_argument("--num", type=int, default=2000)
    options = parser.parse_args()
    config = api.configure(dataset="mnist", data_dir=options.data_dir)
    network = classifier(sources.load(config))
    test = sources.load(config.replace(split="test"))
    upright = test.images[np.isin(test.labels, CLASSES)]
    rows = [
        {
            "strength": "real test images",
            "turned_or_mirrored_%": 100 * share_turned(network, upright),
        }
    ]
    for strength in STRENGTHS:
        rows.append(row(network, strength, options.kimg, options.data_dir, options.num))
        harness.print_table(rows)
    harness.report("leaks", rows, kimg=options.kimg, num=options.num)


if __name__ == "__main__":
    main()
