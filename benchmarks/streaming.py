"""Measures sets that are read from the cache of decoded pictures during training.

    python -m benchmarks.streaming [--pictures=500000] [--rounds=7] [--secs=2]

Rates are those of the trainer's pipeline with the files in the page cache. `of_memory` and
`of_pillow` are ratios to the same images in memory, and to decoding, cropping and resizing by
Pillow alone on one core. The run on many pictures is a whole process on linked copies of a few
files; `gib` is the peak of its anonymous and shared memory, which mapped files do not count
towards.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import harness, trained
from benchmarks.harness import Case, Work

SIZES = {32: 100_000, 64: 25_000}  # pixels and the rate to reach, in images/s
IMAGES = 20_000
BATCH = 64
JPEG_SIDE = 256
LINKED = 64  # files that are linked many times; a file system limits the links of one file
STARTS = (1_000, 100_000)  # pictures
STEPS = 300
RUN = (
    "--recipe=dcgan", "--devices=cpu", "--g_width=0.05", "--d_width=0.05", "--batch_size=8",
    "--sample_grid=2", f"--steps={STEPS}", "--image_size=64",
)  # fmt: skip


def mapped(side: int, folder: Path) -> Any:
    """Writes random images into shards and returns them as an ImageSet and in memory."""
    import numpy as np

    from trainer.data.images import ImageSet
    from trainer.files.shards import Layout, MappedImages, MappedShards, ShardFolder

    held = trained.images(IMAGES, side, 3)
    shards = ShardFolder(folder, Layout.of(IMAGES, (side, side, 3)))
    numbers = range(shards.layout.shards)
    for shard in numbers:
        rows = shards.layout.rows_of(shard)
        shards.write(shard, held.images[rows.start : rows.stop], {})
    source = MappedShards(shards, [shards.map(n, is_read_in_order=False) for n in numbers])
    images = MappedImages(source, np.arange(IMAGES))
    return ImageSet(images, held.labels, held.class_names), held


def batches(*, side: int, streamed: bool) -> Work:
    """Returns work that reads batches of a set within a tf.function."""
    import tensorflow as tf

    from trainer.data import pipeline

    with tempfile.TemporaryDirectory() as folder:
        data = mapped(side, Path(folder))[not streamed]  # mapped files outlive their names
    plan = pipeline.BatchPlan(seed=0, batch_size=BATCH, batches_per_step=1)
    source = iter(pipeline.batches(data, plan, replicas=range(1), num_replicas=1))

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def take(count: tf.Tensor) -> None:
        for _ in tf.range(count):
            next(source)

    return Work(lambda count: take(tf.constant(count)), BATCH)


def write_jpegs(folder: Path, count: int) -> None:
    """Writes smooth colour pictures with some noise."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8))
        smooth = np.asarray(coarse.resize((JPEG_SIDE, JPEG_SIDE)), np.int16)
        pixels = np.clip(smooth + draw.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)


def decoding(*, folder: str, ours: bool) -> Work:
    """Returns work that decodes pictures to 256 pixels on one core, by the trainer or by Pillow."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    import numpy as np
    from PIL import Image

    from trainer import recipes
    from trainer.data import picture_cache, picture_plan
    from trainer.data.file_stores import Folder
    from trainer.data.form import FormOptions
    from trainer.data.listing import list_images
    from trainer.data.reader import Reader

    recipes.resolve({})
    store = Folder(Path(folder))
    listing = list_images(store.names, folder)
    reader = Reader(store, listing, skip_bad=False, report=lambda share, what: None)
    plan = picture_plan.make_plan(reader, FormOptions((JPEG_SIDE, JPEG_SIDE)))

    def by_trainer(count: int) -> None:
        for _ in range(count):
            picture_cache.decode_rows(reader, plan, range(plan.layout.rows), 0)

    def by_pillow(count: int) -> None:
        for _ in range(count):
            images = np.zeros((len(listing.names), JPEG_SIDE, JPEG_SIDE, 3), np.uint8)
            for n, name in enumerate(listing.names):
                with Image.open(Path(folder) / name) as picture:
                    images[n] = np.asarray(picture.convert("RGB"))

    return Work(by_trainer if ours else by_pillow, len(listing.names))


def link_pictures(folder: Path, count: int) -> None:
    """Writes a few pictures and links to them."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % 1000:03d}" / f"{number}.png"
        if number < LINKED:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            first = number % LINKED
            os.link(folder / f"{first:03d}" / f"{first}.png", path)


def train(folder: Path, run_dir: Path) -> dict[str, float]:
    """Trains in a process of its own; returns its peak memory and the time to its first step."""
    command = [sys.executable, "-m", "trainer", "train", *RUN, "--noconditional"]
    command += [f"--dataset={folder}", f"--run_dir={run_dir}", "--log_every_secs=0"]
    began, first, peak = time.perf_counter(), 0.0, 0
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache")}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            record = run_dir / "metrics.jsonl"
            if not first and record.exists() and record.stat().st_size:
                first = time.perf_counter() - began
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
    return {"first_step_secs": first, "gib": peak / 2**30}


def anonymous_bytes(pid: int) -> int:
    """Returns the anonymous and shared memory of a process; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return sum(1024 * int(fields.get(name, "0").split()[0]) for name in ("RssAnon", "RssShmem"))


def rates(options: Any) -> list[dict[str, Any]]:
    """Returns the rates of reading from the cache and of decoding."""
    rows: list[dict[str, Any]] = []
    for side, target in SIZES.items():
        cases = [
            Case(name, "benchmarks.streaming:batches", dict(side=side, streamed=streamed))
            for name, streamed in (("cache", True), ("memory", False))
        ]
        found = harness.measure(cases, rounds=options.rounds, secs=options.secs)
        rows.append({
            "what": f"from the cache, {side} px", "images/s": found["cache"].rate,
            "target": target, "of_memory": found["cache"].over(found["memory"]),
        })  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        write_jpegs(Path(scratch) / "jpegs", 200)
        cases = [
            Case(name, "benchmarks.streaming:decoding", dict(folder=f"{scratch}/jpegs", ours=ours))
            for name, ours in (("trainer", True), ("pillow", False))
        ]
        found = harness.measure(cases, rounds=options.rounds, secs=options.secs)
    rows.append({
        "what": f"decoding JPEG at {JPEG_SIDE} px", "images/s": found["trainer"].rate,
        "of_pillow": found["trainer"].over(found["pillow"]),
    })  # fmt: skip
    return rows


def runs(count: int) -> list[dict[str, Any]]:
    """Returns the start-up and the memory of runs without and with an entry in the cache."""
    rows = []
    for pictures in (*STARTS, count):
        with tempfile.TemporaryDirectory() as scratch:
            link_pictures(Path(scratch) / "pictures", pictures)
            for when in ("cold", "warm"):
                found = train(Path(scratch) / "pictures", Path(scratch) / when)
                rows.append({"what": f"run on {pictures:,} pictures, {when}", **found})
    return rows


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--pictures", type=int, default=500_000, help="of the largest run")
    options = parser.parse_args()
    rows = rates(options) + runs(options.pictures)
    harness.report("streaming", rows, load=os.getloadavg(), pictures=options.pictures)


if __name__ == "__main__":
    main()
