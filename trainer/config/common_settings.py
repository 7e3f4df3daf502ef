"""Settings that most runs give."""

import dataclasses

from trainer.config.image_size import MAX_SIDE, ImageSize
from trainer.config.settings import Duration, FilePath, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Common flags."""

    recipe: FilePath = setting(
        "dcgan",
        "recipe to start from: the name of a published system, whose settings are the defaults, "
        "or a file that defines one, such as mygan.py",
    )
    dataset: FilePath = setting(
        "digits",
        "data set: a name, or the path of your own images: a "
        "folder or .zip (folders train/ and test/ are splits, the folders below them are classes, "
        "unless dataset.json, labels.csv or metadata.jsonl states the labels; transparent pixels "
        "become white), an .npz (arrays x and y, or x_train, y_train, "
        "x_test and y_test), or .tar files (as of WebDataset) or .parquet files. The path may be "
        "gs://BUCKET/PATH",
    )
    length: Duration = setting(
        Duration(300, "kimg"), "length of training", bounds=(0, None), scope="resume"
    )
    batch_size: int = setting(
        64, "global batch size: images per step over all replicas", bounds=(1, None)
    )
    image_size: int | ImageSize = setting(
        0,
        "height and width of the training images in pixels, as one number for squares or as "
        "HEIGHTxWIDTH, such as 96x64. 0 keeps the size of a named data set, and selects the "
        "smallest side of your own pictures, rounded down to a multiple of 4 and limited to 8 to "
        "64",
        bounds=(0, MAX_SIDE),
    )
    conditional: bool = setting(
        False, "train a conditional GAN, which draws images of a requested class"
    )
    seed: int = setting(
        0, "seed of the initial weights, the data order and all noise", bounds=(0, 2**31 - 1)
    )
    data_dir: FilePath = setting(
        "",
        "folder that holds the data sets, or gs://BUCKET/PATH (default: $TRAINER_DATA_DIR)",
        scope="resume",
    )
    run_dir: FilePath = setting(
        "",
        "run directory, or gs://BUCKET/PATH (default: runs/RECIPE-DATASET)",
        scope="start",
    )
    devices: str = setting(
        "auto",
        "devices to train on: auto, gpu (all GPUs), gpu:0,1 (these two), cpu, or cpu:2 (two "
        "logical CPU devices)",
        scope="start",
    )
