"""Optional Prometheus endpoint with the metrics of a run, open from the start of the process.

A metric without a value yet, such as the loss before the first step, is left out.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

from trainer import __version__
from trainer.errors import UsageError
from trainer.machine import gpu_load
from trainer.metrics.registry import METRICS
from trainer.reporting.lines import Line
from trainer.reporting.phases import DEADLINES, Phases
from trainer.reporting.writers import Writer

Samples = list[tuple[list[str], float]]
PREFIX = "gan_trainer_"
COLUMNS = {  # name: (description, column of metrics.jsonl)
    "images": ("images seen", "kimg"),
    "images_per_second": ("images per second, without pauses", "images_per_sec"),
    "utilisation": ("model FLOP/s as a share of the measured matrix-product FLOP/s", "utilisation"),
    "data_wait": ("share of the steps' time spent waiting for data", "data_wait"),
    "d_loss": ("loss of the discriminator", "d_loss"),
    "g_loss": ("loss of the generator", "g_loss"),
    "augment_strength": ("strength of the augmentation, 0 to 1", "augment_strength"),
    "collapse": ("1 while there are signs of collapse, 0 after them", "collapse"),
    "sample_diversity": ("diversity of samples as a share of that of reals", "sample_diversity"),
}
VALUES = {  # name: description of a value that the run sets
    "step": "generator updates done",
    "target_step": "generator updates at the end of the run",
    "starts": "starts of the run, including the first one",
    "checkpoint_step": "step of the newest checkpoint",
    "checkpoint_time_seconds": "time of the newest checkpoint, in seconds since 1970",
    "checkpoint_duration_seconds": "duration of its save in seconds",
}
COUNTERS = {  # name: description of what is counted from the start of the process
    "failed_saves_total": "saves that failed in this process",
    "failed_uploads_total": "checkpoints of this process whose upload failed at first",
    "rollbacks_total": "rollbacks in this process after losses or weights that were not finite",
}
LIVE = {  # name: (description, further label) of what is measured when the metrics are read
    "phase": ("1 for what the process is doing, and 0 for the other phases", "phase"),
    "progress_time_seconds": (
        "time at which the phase began or last made progress, in seconds since 1970",
        "phase",
    ),
    "checkpoint_age_seconds": ("seconds since the newest checkpoint was saved", ""),
    "quality": ("metrics of the newest evaluation", "metric"),
    "gpu_memory_bytes": ("memory in use on a GPU, by all processes", "gpu"),
    "gpu_utilisation": ("share of the last second in which a GPU computed", "gpu"),
    "build_info": ("1, with the versions as labels", ""),
}
NAMES = tuple(PREFIX + name for name in (*COLUMNS, *VALUES, *COUNTERS, *LIVE))


class Telemetry(Writer):
    """Serves the newest values at the endpoint /metrics."""

    def __init__(
        self,
        port: int,
        labels: Mapping[str, str],
        address: str = "",
        phases: Phases | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the endpoint.

        Args:
          port: port to listen on; 0 for no endpoint.
          labels: labels of every value.
          address: address to listen on; "" for all.
          phases: what the process is doing.
          clock: returns the seconds since 1970.

        Raises:
          UsageError: if the address cannot be used, or the package prometheus_client is missing.
        """
        self._phases, self._labels, self._clock = phases or Phases(), dict(labels), clock
        self._values: dict[str, float] = {}
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._quality: dict[str, float] = {}
        self._saved_at: float | None = None
        self._server: Any = None
        if not port:
            return
        try:
            import prometheus_client as prometheus  # an extra of this package
        except ImportError:
            raise UsageError(
                f"--metrics_port={port} needs a package: pip install 'gan-trainer[prometheus]'."
            ) from None
        registry = prometheus.CollectorRegistry()
        registry.register(self)
        try:
            self._server, _ = prometheus.start_http_server(
                port, address or "0.0.0.0", registry=registry
            )
        except OSError as error:
            where = f"--metrics_address={address} --metrics_port={port}" if address else ""
            raise UsageError(
                f"{where or f'--metrics_port={port}'} cannot be opened ({error.strerror}). Choose "
                f"another {'address or ' if address else ''}port."
            ) from None

    def close_endpoint(self) -> None:
        """Closes the endpoint, so that another run of this process can open it."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def collect(self) -> Iterator[Any]:
        """Yields the metrics that have a value; prometheus_client calls it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels, values = list(self._labels), list(self._labels.values())
        gauges = {**{name: what for name, (what, _) in COLUMNS.items()}, **VALUES}
        for name, number in list(self._values.items()):
            family = GaugeMetricFamily(PREFIX + name, gauges[name], labels=labels)
            family.add_metric(values, number)
            yield family
        for name, count in self._counts.items():
            counter = CounterMetricFamily(PREFIX + name, COUNTERS[name], labels=labels)
            counter.add_metric(values, count)
            yield counter
        for name, samples in self._live().items():
            what, label = LIVE[name]
            extra = [label] if label else list(_versions()) if name == "build_info" else []
            family = GaugeMetricFamily(PREFIX + name, what, labels=[*labels, *extra])
            for further, number in samples:
                family.add_metric([*values, *further], number)
            yield family

    def line(self, line: Line) -> None:
        """Updates the values from a line."""
        for name, (_, column) in COLUMNS.items():
            if line.get(column) is not None:
                self.set(name, line[column] * (1000 if name == "images" else 1))
        self.set("step", line["step"])

    def evaluation(self, values: Mapping[str, float], step: int) -> None:
        """Records the metrics of an evaluation."""
        self._quality = {name: value for name, value in values.items() if name in METRICS}

    def saved(self, step: int, secs: float) -> None:
        """Records that a checkpoint of `step` was just saved and took `secs` seconds."""
        self.restored(step, self._clock())
        self.set("checkpoint_duration_seconds", secs)

    def restored(self, step: int, saved_at: float) -> None:
        """Records a checkpoint of `step` that was saved at a time in seconds since 1970."""
        self._saved_at = saved_at
        self.set("checkpoint_step", step)
        self.set("checkpoint_time_seconds", saved_at)

    def set(self, name: str, value: float) -> None:
        """Sets one value."""
        self._values[name] = value

    def count(self, name: str, more: int = 1) -> None:
        """Adds to one of COUNTERS."""
        self._counts[name] += more

    def _live(self) -> dict[str, Samples]:
        """Returns, by name, the values with their further labels."""
        now, gpus = self._clock(), gpu_load.read()
        age: Samples = [] if self._saved_at is None else [([], now - self._saved_at)]
        phase = self._phases.name
        return {
            "phase": [([name], float(name == phase)) for name in DEADLINES],
            "progress_time_seconds": [([phase], now - self._phases.silent_secs)],
            "checkpoint_age_seconds": age,
            "quality": [([name], value) for name, value in self._quality.items()],
            "gpu_memory_bytes": [([str(k)], float(gpu.memory)) for k, gpu in enumerate(gpus)],
            "gpu_utilisation": [([str(k)], gpu.utilisation) for k, gpu in enumerate(gpus)],
            "build_info": [(list(_versions().values()), 1.0)],
        }


@functools.cache
def _versions() -> dict[str, str]:
    """Returns the versions of the trainer, TensorFlow and Keras, without importing them."""
    found = {"version": __version__, "tensorflow": "", "keras": ""}
    for package in ("keras", "tensorflow-cpu", "tensorflow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package.removesuffix("-cpu")] = metadata.version(package)
    return found
