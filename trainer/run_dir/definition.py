"""What defines a run: compared when it is resumed, and written to its run directory."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

from trainer.config import Config
from trainer.config.compatibility import changes, frozen_differences
from trainer.config.dataset import DatasetDescription
from trainer.config.settings import as_flag
from trainer.errors import CheckpointError, UsageError
from trainer.files.atomic import replacing, write_text
from trainer.recipes import files
from trainer.run_dir.directory import RunDir
from trainer.run_dir.provenance import allowed_tensor_float_32, selected_precision

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Definition:
    """What defines a run.

    Attributes:
      config: the configuration.
      dataset: the data set that it trains on.
      start: versions and devices of this start.
      recipe_files: the recipes that the run takes from files, content by name.
      initialization: what this start took over from the run of --init_from, if it did.
    """

    config: Config
    dataset: DatasetDescription
    start: Mapping[str, Any]
    recipe_files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    initialization: Mapping[str, Any] | None = None

    def compare(self, run_dir: RunDir, *, accept_changed_data: bool = False) -> None:
        """Compares this run with the one in a run directory, if there is one.

        Args:
          run_dir: the run directory.
          accept_changed_data: whether to resume with other images of the same shape.

        Raises:
          CheckpointError: if the directory holds a run with other settings or other data.
        """
        if run_dir.config.exists():
            old = run_dir.read_provenance()
            _check_stored_settings(run_dir, self.config, old, self.start)
            _check_dataset(run_dir, self.dataset, self.config.dataset, accept_changed_data)
            _report_version_change(old, self.start)

    def write(self, run_dir: RunDir) -> None:
        """Writes the files that define the run.

        Raises:
          UsageError, StorageError: if the directory cannot be written.
        """
        began_with = self.start.get("trainer")
        if run_dir.config.exists():
            old = run_dir.read_provenance()
            # The first version did not record by which version a run was started.
            began_with = old.get("began_with", old.get("trainer", "0.1.0"))
        provenance = {**self.start, "began_with": began_with}
        with run_dir.converted_write_errors():
            run_dir.samples.mkdir(exist_ok=True)
            for name, content in self.recipe_files.items():
                run_dir.recipes.mkdir(exist_ok=True)
                with replacing(run_dir.recipes / name) as scratch:
                    scratch.write_bytes(content)
            write_text(run_dir.dataset, self.dataset.to_json())
            write_text(run_dir.config, self.config.to_json())
            write_text(run_dir.provenance, json.dumps(provenance, indent=2) + "\n")
            if self.initialization is not None:
                taken_over = json.dumps(self.initialization, indent=2) + "\n"
                write_text(run_dir.initialization, taken_over)


def check_settings(old: Config, new: Config, later: Collection[str] = ()) -> None:
    """Compares the settings of a start with those of the run that it resumes.

    Args:
      old: the configuration of the run.
      new: the configuration of this start.
      later: names of settings that are not compared.

    Raises:
      CheckpointError: if settings differ that define the run; it names them.
    """
    differences = frozen_differences(old, new, without=later)
    changed = [name for name in ("recipe", "networks") if _is_changed_file(name, old, new)]
    if changed:
        copy = getattr(old, changed[0])
        raise CheckpointError(
            f"{files.shown_name(copy)} has changed since the run in {new.run_dir} was started. "
            f"To resume the run with its copy of the file, use --run_dir={new.run_dir} without "
            f"--{' and --'.join(changed)}. To train the changed file, choose another --run_dir, "
            "or use --fresh."
        )
    if differences:
        listed = files.with_shown_names("; ".join(differences))
        raise CheckpointError(
            f"{new.run_dir} holds a run with other settings ({listed}). Leave "
            "out these flags to resume it, or choose another --run_dir, or use --fresh."
        )


def _is_changed_file(name: str, old: Config, new: Config) -> bool:
    """Returns whether a setting names the same recipe file with another content."""
    before, now = getattr(old, name), getattr(new, name)
    return before != now and files.is_file(before) and files.stem(before) == files.stem(now)


def check_length(config: Config, done: int, last_step: int) -> None:
    """Raises a UsageError if the length of a run is below the steps that are done."""
    if last_step < done:
        raise UsageError(
            f"{as_flag('length', config.length)} is {last_step:,} steps, but {config.run_dir} has "
            f"already trained {done:,} steps ({done * config.batch_size / 1000:.6g} kimg). Give a "
            "greater length, or leave it out to keep the length of the run."
        )


def _check_stored_settings(
    run_dir: RunDir, config: Config, old_start: Mapping[str, Any], this_start: Mapping[str, Any]
) -> None:
    try:
        old = run_dir.read_config()
    except UsageError as error:
        raise CheckpointError(f"{error} Correct the file, or use --fresh.") from None
    # --precision=auto may select another number format on other devices.
    with contextlib.suppress(KeyError, UsageError):
        before, now = selected_precision(old_start), this_start["precision"]
        if now == "float32" and allowed_tensor_float_32(old_start):
            log.warning(
                "The version that started this run used TensorFloat-32 for --precision=float32 on "
                "GPUs. The run continues in float32, as requested. Leave out the flag to continue "
                "in tf32."
            )
            before = now
        if before is not None:
            config, old = config.replace(precision=now), old.replace(precision=before)
    check_settings(old, config)
    if changed := changes(old, config):
        log.info("Changed settings of the run: %s", "; ".join(changed))


def _check_dataset(
    run_dir: RunDir, new: DatasetDescription, name: str, accept_changed: bool
) -> None:
    if not run_dir.dataset.exists():
        return
    old = run_dir.read_dataset()
    if old.fingerprint == new.fingerprint:
        return
    changed = (
        f"--dataset={name} has changed since the run in {run_dir.path} was started: it has "
        f"{new.images:,} images (fingerprint {new.fingerprint[:8]}) and had "
        f"{old.images:,} ({old.fingerprint[:8]})"
    )
    if not old.has_same_form(new):
        raise CheckpointError(
            f"{changed}, and its image shape or classes differ. Restore the old data, choose "
            "another --run_dir, or use --fresh."
        )
    if not accept_changed:
        raise CheckpointError(
            f"{changed}. Use --accept_changed_data to resume with the new data, or restore "
            "the old data, choose another --run_dir, or use --fresh."
        )
    log.warning("%s. Training continues with the new data.", changed)


def _report_version_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = old.get("trainer", "unknown"), new.get("trainer")
    if now and before != now:
        log.warning(
            "This run was last trained by version %s and is resumed by version %s. Training "
            "continues, but only within one version is a resumed run bit-identical to an "
            "uninterrupted one.",
            before,
            now,
        )
