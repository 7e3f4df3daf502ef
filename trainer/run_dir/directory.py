"""A run's directory: where its files are, and whether it may be gone on with."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer import __version__
from trainer.config import Config
from trainer.config.compatibility import frozen_differences
from trainer.data.images import ImageSet, ImageShape
from trainer.errors import CheckpointError, StorageError, UsageError
from trainer.files.atomic import free_name, write_text
from trainer.run_dir.lock import Lock

log = logging.getLogger(__name__)

MAX_STARTS = 20  # in a row that come no further: a cluster would go on for ever
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # faults of a disk that may pass


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The files of a run."""

    path: Path
    tensorboard_dir: Path | None = None  # where TensorBoard's files are, if not in it

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.json"

    @property
    def data(self) -> Path:
        """What the run was trained on."""
        return self.path / "data.json"

    @property
    def provenance(self) -> Path:
        """What the run was started with: versions, devices."""
        return self.path / "provenance.json"

    @property
    def starts(self) -> Path:
        """How often the run was started."""
        return self.path / "starts.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The folder of the best checkpoint."""
        return self.path / "best"

    @property
    def evaluations(self) -> Path:
        """What evaluations during training found, a line each."""
        return self.path / "evaluations.jsonl"

    @property
    def gallery(self) -> Path:
        """Pictures of the last one."""
        return self.path / "evaluation"

    @property
    def evaluation(self) -> Path:
        """What the evaluate command found."""
        return self.path / "evaluation.json"

    @property
    def samples(self) -> Path:
        """The folder of sample grids."""
        return self.path / "samples"

    @property
    def reals(self) -> Path:
        """The grid of real images."""
        return self.samples / "reals.png"

    @property
    def metrics(self) -> Path:
        """The record, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's files."""
        return self.tensorboard_dir or self.path / "tensorboard"

    @property
    def gif(self) -> Path:
        """The sample grids through training."""
        return self.path / "training.gif"

    @property
    def generator(self) -> Path:
        """The generator alone, once the run is complete."""
        return self.path / "generator.keras"

    def is_finished(self, newest: Path | None) -> bool:
        """Whether the generator alone was saved after the `newest` checkpoint."""
        if newest is None or not self.generator.exists():
            return False
        saved = newest.with_name(newest.name + ".index").stat().st_mtime
        return self.generator.stat().st_mtime >= saved

    def read_config(self) -> Config:
        """The configuration of the run in this directory.

        Raises:
          UsageError: if there is none.
        """
        try:
            text = self.config.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"{self.path} is not a run directory: no {self.config.name}."
            ) from None
        except OSError as error:
            raise UsageError(f"{self.config} cannot be read ({error.strerror}).") from None
        return Config.from_json(text, str(self.config))

    def read_shape(self) -> tuple[ImageShape, tuple[str, ...]]:
        """The image shape and the class names of the run's data.

        Raises:
          CheckpointError: if they cannot be read.
        """
        data = self.read_data()
        shape = ImageShape(data["size"], data["channels"], data["classes"])
        return shape, tuple(data["class_names"])

    def read_fingerprint(self) -> str:
        """The fingerprint of the run's data.

        Raises:
          CheckpointError: if it cannot be read.
        """
        return self.read_data()["fingerprint"]

    def read_data(self) -> dict[str, Any]:
        """What the run was trained on, as `describe` wrote it.

        Raises:
          CheckpointError: if it cannot be read.
        """
        wanted = {"images", "size", "channels", "classes", "class_names", "fingerprint"}
        try:
            data = json.loads(self.data.read_text(encoding="utf-8"))
            if set(data) != wanted:
                raise ValueError(f"it has {sorted(data)}")
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self.data}, which says what the run was trained on, cannot be read ({error}): "
                "remove it and run the train command again, which writes it."
            ) from None
        return data

    @contextlib.contextmanager
    def held(self) -> Iterator[Lock]:
        """Makes the directory and keeps other jobs out of it for a block.

        Raises:
          BusyError: if another job holds it.
          UsageError, StorageError: if it cannot be written.
        """
        with contextlib.ExitStack() as stack:
            with self.writing():
                self.path.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(Lock(self.path).held())
            yield lock

    def read_starts(self) -> dict[str, int]:
        """How often the run was started, and how often in a row from the same step."""
        try:
            read = json.loads(self.starts.read_text(encoding="utf-8"))
            return {name: int(read[name]) for name in ("starts", "step", "in_a_row")}
        except (OSError, ValueError, TypeError, KeyError):
            return {"starts": 0, "step": -1, "in_a_row": 0}

    def note_start(self, step: int) -> int:
        """Notes that the run starts from `step`; returns how often it was resumed.

        Raises:
          StorageError: if it started from there again and again, and never came further.
        """
        old = self.read_starts()
        in_a_row = old["in_a_row"] + 1 if old["step"] == step else 1
        if in_a_row > MAX_STARTS:
            raise StorageError(
                f"{MAX_STARTS} starts in a row came no further than step {step}: see the log for "
                f"why they ended; remove {self.starts} to try again."
            )
        new = {"starts": old["starts"] + 1, "step": step, "in_a_row": in_a_row}
        with self.writing():
            write_text(self.starts, json.dumps(new) + "\n")
        return old["starts"]

    def set_aside(self, environment: Mapping[str, str] = os.environ) -> None:
        """Renames an old run directory, so that a fresh run can start.

        Raises:
          UsageError: in a Kubernetes Job, whose retries would each start from zero.
        """
        for name in ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"):
            if name in environment:
                raise UsageError(
                    f"--fresh is refused where {name} is set: each retry of a Job would start "
                    "from zero; give another --run_dir."
                )
        if not self.path.exists():
            return
        with self.held():  # nobody else is at work in it
            pass
        target = free_name(self.path, ".old-")
        self.path.rename(target)
        log.info("Set the old run aside as %s", target)

    def claim(
        self,
        config: Config,
        data: ImageSet,
        provenance: Mapping[str, Any],
        *,
        accept_changed_data: bool = False,
    ) -> None:
        """Writes what defines the run into the directory, or checks what is there.

        Args:
          config: the run.
          data: its images.
          provenance: what it is started with.
          accept_changed_data: whether to go on with other images of the same form.

        Raises:
          CheckpointError: if the run there has other settings or other data.
          UsageError, StorageError: if the directory cannot be written.
        """
        if self.config.exists():
            self._check_settings(config, provenance)
            self._check_data(data, config.dataset, accept_changed_data)
        with self.writing():
            self.samples.mkdir(exist_ok=True)
            write_text(self.data, json.dumps(describe(data), indent=2) + "\n")
            write_text(self.config, config.to_json())
            write_text(self.provenance, json.dumps(provenance, indent=2) + "\n")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns an error of the file system in a block into one for the user."""
        try:
            yield
        except OSError as error:
            kind = StorageError if error.errno in PASSING else UsageError
            raise kind(
                f"--run_dir={self.path} cannot be written ({error.strerror}): "
                f"{'free some disk or ' if kind is StorageError else ''}give another."
            ) from None

    def _check_settings(self, config: Config, provenance: Mapping[str, Any]) -> None:
        try:
            old = self.read_config()
        except UsageError as error:
            raise CheckpointError(f"{error} Mend it, or use --fresh.") from None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UsageError):
            began = json.loads(self.provenance.read_text(encoding="utf-8"))
            meant = old.replace(precision=began["precision"])  # what "auto" meant then, and now
            config, old = config.replace(precision=provenance["precision"]), meant
        differences = frozen_differences(old, config)
        if differences:
            raise CheckpointError(
                f"{self.path} holds a run with other settings ({'; '.join(differences)}): give "
                "the old ones, another --run_dir, or --fresh."
            )

    def _check_data(self, data: ImageSet, dataset: str, accept_changed: bool) -> None:
        if not self.data.exists():
            return
        old, new = self.read_data(), describe(data)
        if old["fingerprint"] == new["fingerprint"]:
            return
        changed = (
            f"--dataset={dataset} is not what the run in {self.path} began with: it has "
            f"{new['images']:,} images (fingerprint {new['fingerprint'][:8]}) and had "
            f"{old['images']:,} ({old['fingerprint'][:8]})"
        )
        form = ("size", "channels", "classes", "class_names")
        fits = all(old[key] == new[key] for key in form)
        if not (accept_changed and fits):
            go_on = "go on with --accept_changed_data" if fits else "its shape or classes differ"
            raise CheckpointError(
                f"{changed}. {go_on[0].upper()}{go_on[1:]}, or bring the old data back, give "
                "another --run_dir, or --fresh."
            )
        log.warning("%s. Going on with what it has now.", changed)


def describe(data: ImageSet) -> dict[str, Any]:
    """What data.json holds."""
    return {
        "images": len(data),
        "size": data.shape.size,
        "channels": data.shape.channels,
        "classes": data.shape.classes,
        "class_names": list(data.class_names),
        "fingerprint": data.fingerprint,
    }


def provenance(
    versions: Mapping[str, str], devices: tuple[str, ...], precision: str
) -> dict[str, Any]:
    """What provenance.json holds: with what the run was (last) started."""
    return {
        "trainer": __version__,
        **versions,
        "python": platform.python_version(),
        "commit": _commit(),
        "machine": platform.machine(),
        "devices": list(devices),
        "precision": precision,
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, if it does from one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
