"""Measures how good the pictures of a run are, and writes what it found."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from trainer.config import Config
from trainer.data.images import ImageSet
from trainer.errors import CheckpointError, DataError
from trainer.evaluation import evaluator, gallery
from trainer.evaluation.during_training import as_text
from trainer.evaluation.evaluator import Evaluator, Findings
from trainer.files.atomic import write_text
from trainer.generation import generate
from trainer.generation.sampler import Sampler
from trainer.machine.replicas import create_replicas
from trainer.metrics import distances
from trainer.metrics.registry import METRICS
from trainer.run_dir import selection
from trainer.run_dir.checkpoint_files import checkpoint_step
from trainer.run_dir.checkpoints import load_networks_of
from trainer.run_dir.directory import RunDir

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
Record = dict[str, Any]


def evaluate(
    run_dir: RunDir,
    config: Config,
    data: ImageSet,
    *,
    which: str,
    features: str,
    inception_path: str,
    num_samples: int,
    seed: int,
) -> None:
    """Evaluates checkpoints of a run; writes evaluation.json and the folder evaluation/.

    Args:
      run_dir: the run.
      config: its configuration, with the devices to use and the split to compare with.
      data: the images of that split.
      which: "best", "latest", a step, "all", or "": the best where the run kept one.
      features, inception_path, num_samples, seed: as of `evaluator.prepare`.

    Raises:
      TrainerError: if there is no such checkpoint, or its features cannot be had.
    """
    check_data(run_dir, data, config)
    # The same number each time, on whatever device.
    replicas = create_replicas(config.replace(deterministic=True))
    with replicas.scope():
        generator, name = generate.build_drawing(run_dir, config)
    ready = evaluator.prepare(
        config,
        data,
        features=features,
        inception_path=inception_path,
        num_samples=num_samples,
        seed=seed,
        check=lambda: None,
    )
    about = {**ready.describe(), "ema": name == "average", "compute_dtype": replicas.precision}
    sampler = Sampler(config, generator, replicas)
    records = []
    for path in load_each(run_dir, which, {name: generator}):
        found = ready.evaluate(sampler)
        records.append(record_of(path, config, data, ready, found, about))
        log.info("Step %d: %s (%.1f s)", checkpoint_step(path), as_text(found.values), found.secs)
    best = pick(records)
    with run_dir.converted_write_errors():
        write(run_dir, records, best)
        if which != "all":
            gallery.draw(run_dir, config, data, generator, ready, found)
    report(run_dir, records, best)


def load_each(run_dir: RunDir, which: str, networks: dict[str, keras.Model]) -> Iterator[Path]:
    """Reads networks from each checkpoint asked for in turn; yields the checkpoint's path.

    Raises:
      TrainerError: if there is none that loads.
    """
    if which != "all":
        yield selection.load(run_dir, which, networks)
        return
    loaded = 0
    for path in selection.all_of(run_dir):
        try:
            load_networks_of(path, networks)
        except CheckpointError as error:
            log.warning("%s", error)
            continue
        loaded += 1
        yield path
    if not loaded:
        raise CheckpointError(f"{run_dir.path} holds no checkpoint that loads.")


def check_data(run_dir: RunDir, data: ImageSet, config: Config) -> None:
    """Holds the data against what the run was trained on.

    Raises:
      DataError: if its images have another form.
    """
    old, new = run_dir.read_dataset(), data.describe()
    if not old.has_same_form(new):
        raise DataError(
            f"--dataset={config.dataset} is {data.shape}, and the run in {run_dir.path} draws "
            f"{old.shape}: give the data it was trained on."
        )
    if config.split == run_dir.read_config().split and old.fingerprint != new.fingerprint:
        log.warning(
            "--dataset=%s is not what the run began with (fingerprint %s, it had %s).",
            config.dataset,
            new.fingerprint[:8],
            old.fingerprint[:8],
        )


def record_of(
    path: Path,
    config: Config,
    data: ImageSet,
    ready: Evaluator,
    found: Findings,
    about: Record,
) -> Record:
    """What evaluation.json holds of a checkpoint; no number stands without what made it."""
    step = checkpoint_step(path)
    record: Record = {
        **found.values,
        "checkpoint": str(path),
        "step": step,
        "kimg": step * config.batch_size / 1000,
        "recipe": config.recipe,
        "dataset": config.dataset,
        "image_size": data.shape.size,
        **about,
        "secs": round(found.secs, 1),
        "time": time.time(),
    }
    labels = ready.labels
    if labels is None:
        return record
    if found.judged is not None:
        counts = distances.confusion(found.judged, labels)
        record["class_accuracy"] = {
            name: counts[k, k] / total
            for k, name in enumerate(data.class_names)
            if (total := int(counts[k].sum()))
        }
    by_class = distances.class_fids(
        ready.reals.features,
        ready.reals.labels,
        found.features.features,
        labels,
        data.shape.classes,
    )
    if by_class:
        record["class_fid"] = {data.class_names[k]: value for k, value in by_class.items()}
    return record


def pick(records: list[Record]) -> Record:
    """The record of the least FID."""
    best = records[0]
    for record in records[1:]:
        if METRICS["fid"].is_better(record["fid"], best["fid"]):
            best = record
    return best


def write(run_dir: RunDir, records: list[Record], best: Record) -> None:
    """Writes evaluation.json: the best record, and below "evaluations" all of them."""
    content = {"format_version": FORMAT_VERSION, **best, "evaluations": records}
    write_text(run_dir.evaluation, json.dumps(content, indent=2, allow_nan=False) + "\n")


def report(run_dir: RunDir, records: list[Record], best: Record) -> None:
    """Shows the numbers as tables."""
    rows = [
        ("fid", "kid", "inception_score"),
        ("precision", "recall", "density", "coverage", "conditional_accuracy"),
    ]
    if len(records) > 1:
        names = ["kimg", *(name for row in rows for name in row if name in best)]
        log.info("  ".join(f"{name:>{max(8, len(name))}}" for name in names))
        for record in records:
            cells = (f"{record[name]:{max(8, len(name))}.4g}" for name in names)
            mark = "  least FID" if record is best else ""
            log.info("%s%s", "  ".join(cells), mark)
    else:
        for name in (name for row in rows for name in row if name in best):
            spread = f" +- {best[f'{name}_std']:.2g}" if f"{name}_std" in best else ""
            log.info("%-22s%.4g%s", name, best[name], spread)
        for name, value in best.get("class_accuracy", {}).items():
            by_itself = best.get("class_fid", {}).get(name)
            more = "" if by_itself is None else f"   FID of the class {by_itself:.4g}"
            log.info("  %-20s%.1f%%%s", name, 100 * value, more)
    log.info(
        "By %s %s: %s images (%s, seed %d, %s) against %s reals of the %s split",
        best["feature_network"],
        best["feature_hash"],
        f"{best['num_samples']:,}",
        "moving average" if best["ema"] else "no moving average",
        best["seed"],
        best["compute_dtype"],
        f"{best['reference_images']:,}",
        best["reference_split"],
    )
    log.info("Written to %s", run_dir.evaluation)
