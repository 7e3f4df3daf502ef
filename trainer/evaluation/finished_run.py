"""Evaluates checkpoints of a run, and writes the results to the run directory."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from trainer.config import Config
from trainer.config.dataset import DatasetDescription
from trainer.config.image_size import size_as_json, size_of
from trainer.data.images import ImageSet
from trainer.errors import CheckpointError, DataError
from trainer.evaluation import gallery
from trainer.evaluation.evaluator import (
    EvaluationOptions,
    EvaluationResult,
    Evaluator,
    create_evaluator,
)
from trainer.files.atomic import write_text
from trainer.generation import generate
from trainer.generation.sampler import Sampler
from trainer.machine.replicas import create_replicas
from trainer.metrics import distances
from trainer.metrics.registry import METRICS, format_metrics, format_value
from trainer.run_dir import selection
from trainer.run_dir.checkpoint_files import checkpoint_step
from trainer.run_dir.checkpoints import load_networks_of
from trainer.run_dir.directory import RunDir
from trainer.storage import output_copies

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
Record = dict[str, Any]


def evaluate(
    run_dir: RunDir,
    config: Config,
    data: ImageSet,
    options: EvaluationOptions,
    which: str = "",
    out: Path | None = None,
) -> Record:
    """Evaluates checkpoints of a run; writes evaluation.json and the folder evaluation/.

    Args:
      run_dir: the run directory.
      config: the configuration of the run, with the devices to use and the split to compare
        with.
      data: the images of that split.
      options: what to draw and which features to compare.
      which: "best", "latest", a step, "all", or "" for the best if the run has one, else the
        latest.
      out: folder to write to; the run directory by default.

    Returns:
      The metrics of the checkpoint, or of the best one, and how they were measured.

    Raises:
      TrainerError: if the checkpoint cannot be loaded, the requested features are not available,
        or the folder cannot be written, which is checked first.
    """
    results = RunDir(out or run_dir.path)
    output_copies.check_writable(str(results.path), "out")
    check_data(run_dir, data, config)
    # Deterministic operations give the same results each time.
    replicas = create_replicas(config.replace(deterministic=True))
    with replicas.scope():
        generator, name = generate.build_generator(run_dir, config)
    evaluator = create_evaluator(config, data, options)
    conditions = {
        **evaluator.describe(),
        "ema": name == "average",
        "compute_dtype": replicas.precision,
    }
    sampler = Sampler(config, generator, replicas)
    records = []
    for path in load_checkpoints(run_dir, which, {name: generator}):
        result = evaluator.evaluate(sampler)
        records.append(create_record(path, config, data, evaluator, result, conditions))
        # The table at the end shows the metrics of a single checkpoint.
        metrics = f": {format_metrics(result.values)}" if which == "all" else ""
        log.info("Evaluated step %d in %.1f s%s", checkpoint_step(path), result.secs, metrics)
    best = select_best(records)
    with output_copies.converted_disk_errors(str(results.path), "out"):
        write_records(results, records, best)
        if which != "all":
            gallery.draw(results, config, data, generator, evaluator, result)
    log_records(results, records, best)
    return best


def load_checkpoints(
    run_dir: RunDir, which: str, networks: dict[str, keras.Model]
) -> Iterator[Path]:
    """Loads networks from each selected checkpoint in turn, and yields its path.

    Args:
      run_dir: the run directory.
      which: as for `evaluate`.
      networks: networks to load, by their names in checkpoints.

    Raises:
      TrainerError: if no checkpoint can be loaded.
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
        raise CheckpointError(f"{run_dir.path} has no checkpoint that can be loaded.")


def check_data(run_dir: RunDir, data: ImageSet, config: Config) -> None:
    """Compares the data with the data set that the run was trained on.

    Other images of the same split cause a warning only.

    Raises:
      DataError: if size, channels or classes differ.
    """
    old, new = run_dir.read_dataset(), data.describe()
    if not old.has_same_form(new):
        raise DataError(
            f"--dataset={config.dataset} has {_form(new)}, but the run in {run_dir.path} was "
            f"trained on {_form(old)}; class names must match, too. Use --data_dir to select the "
            "folder of the data that the run was trained on."
        )
    if config.split == run_dir.read_config().split and old.fingerprint != new.fingerprint:
        log.warning(
            "--dataset=%s differs from what the run was trained on (fingerprint %s instead of %s).",
            config.dataset,
            new.fingerprint[:8],
            old.fingerprint[:8],
        )


def _form(data: DatasetDescription) -> str:
    """Returns the size, channels and classes of a data set as text."""
    shape = data.shape
    return f"images of {shape.height}x{shape.width}x{shape.channels} in {shape.classes} classes"


def create_record(
    path: Path,
    config: Config,
    data: ImageSet,
    evaluator: Evaluator,
    result: EvaluationResult,
    conditions: Record,
) -> Record:
    """Returns the entry of evaluation.json for a checkpoint: its results and their conditions."""
    step = checkpoint_step(path)
    record: Record = {
        **result.values,
        "checkpoint": str(path),
        "step": step,
        "kimg": step * config.batch_size / 1000,
        "recipe": config.recipe,
        "dataset": config.dataset,
        "image_size": size_as_json(size_of(*data.shape.sides)),
        **conditions,
        "secs": round(result.secs, 1),
        "time": time.time(),
    }
    labels = evaluator.labels
    if labels is None:
        return record
    if result.classifier_logits is not None:
        counts = distances.confusion(result.classifier_logits, labels)
        record["class_accuracy"] = {
            name: counts[k, k] / total
            for k, name in enumerate(data.class_names)
            if (total := int(counts[k].sum()))
        }
    class_fids = distances.class_fids(
        evaluator.reals.features,
        evaluator.reals.labels,
        result.features.features,
        labels,
        data.shape.classes,
    )
    if class_fids:
        record["class_fid"] = {data.class_names[k]: value for k, value in class_fids.items()}
    return record


def select_best(records: list[Record]) -> Record:
    """Returns the record with the lowest FID."""
    best = records[0]
    for record in records[1:]:
        if METRICS["fid"].is_better(record["fid"], best["fid"]):
            best = record
    return best


def write_records(results: RunDir, records: list[Record], best: Record) -> None:
    """Writes evaluation.json: the best record, and all records under "evaluations"."""
    content = {"format_version": FORMAT_VERSION, **best, "evaluations": records}
    write_text(results.evaluation, json.dumps(content, indent=2, allow_nan=False) + "\n")


def log_records(results: RunDir, records: list[Record], best: Record) -> None:
    """Logs the results as a table, and the conditions of the evaluation."""
    names = [name for name in METRICS if name in best]
    if len(records) > 1:
        columns = ["kimg", *names]
        log.info("  ".join(f"{name:>{max(8, len(name))}}" for name in columns))
        for record in records:
            cells = (f"{record[name]:{max(8, len(name))}.4g}" for name in columns)
            mark = "  lowest FID" if record is best else ""
            log.info("%s%s", "  ".join(cells), mark)
    else:
        for name in names:
            log.info("%-22s%s", name, format_value(name, best))
        for name, accuracy in best.get("class_accuracy", {}).items():
            class_fid = best.get("class_fid", {}).get(name)
            fid_text = "" if class_fid is None else f"   FID of this class {class_fid:.4g}"
            log.info("  %-20s%.1f%%%s", name, 100 * accuracy, fid_text)
    log.info(
        "Compared by the features of %s %s: %s generated images (%s, seed %d, %s) with %s real "
        "images of the %s split",
        best["feature_network"],
        best["feature_hash"],
        f"{best['num_samples']:,}",
        "EMA of the weights" if best["ema"] else "no EMA of the weights",
        best["seed"],
        best["compute_dtype"],
        f"{best['reference_images']:,}",
        best["reference_split"],
    )
    log.info("Results written to %s", results.evaluation)
