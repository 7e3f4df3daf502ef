"""Optional Prometheus endpoint with the metrics of a run."""

import time
from collections.abc import Mapping
from typing import Any

from trainer.errors import UsageError
from trainer.reporting.lines import Line
from trainer.reporting.writers import Writer

GAUGES = {  # name: (description, column of metrics.jsonl)
    "step": ("generator updates done", "step"),
    "images": ("images seen", "kimg"),
    "images_per_second": ("images per second, without pauses", "images_per_sec"),
    "utilisation": ("model FLOP/s as a share of the measured matrix-product FLOP/s", "utilisation"),
    "data_wait": ("share of the steps' time spent waiting for data", "data_wait"),
    "d_loss": ("loss of the discriminator", "d_loss"),
    "g_loss": ("loss of the generator", "g_loss"),
    "augment_strength": ("strength of the augmentation, 0 to 1", "augment_strength"),
    "failed_saves": ("saves that failed", "failed_saves"),
    "failed_uploads": (
        "checkpoints whose upload failed at first",
        "failed_uploads",
    ),
    "rollbacks": ("rollbacks after losses or weights that were not finite", "rollbacks"),
    "collapse": ("1 after signs of collapse", "collapse"),
    "sample_diversity": (
        "diversity of samples as a share of that of reals",
        "sample_diversity",
    ),
}


class Telemetry(Writer):
    """Serves the newest values at the endpoint /metrics."""

    def __init__(self, port: int, labels: Mapping[str, str]) -> None:
        """Opens the endpoint.

        Args:
          port: port to listen on; 0 for no endpoint.
          labels: labels of every value.

        Raises:
          UsageError: if the port is in use, or the package prometheus_client is missing.
        """
        self._gauges: dict[str, Any] = {}
        if not port:
            return
        try:
            import prometheus_client as prometheus  # an extra of this package
        except ImportError:
            raise UsageError(
                f"--metrics_port={port} needs a package: pip install 'gan-trainer[prometheus]'."
            ) from None
        registry = prometheus.CollectorRegistry()
        more = {
            "resumes": ("resumed starts of the run",),
            "checkpoint_step": ("step of the newest checkpoint",),
            "checkpoint_time_seconds": ("time of the newest checkpoint, in seconds since 1970",),
            "checkpoint_duration_seconds": ("duration of its save in seconds",),
        }
        for name, (what, *_) in {**GAUGES, **more}.items():
            gauge = prometheus.Gauge(f"gan_trainer_{name}", what, list(labels), registry=registry)
            self._gauges[name] = gauge.labels(*labels.values())
        try:
            prometheus.start_http_server(port, registry=registry)
        except OSError as error:
            raise UsageError(
                f"--metrics_port={port} cannot be opened ({error.strerror}). Choose another port."
            ) from None

    def line(self, line: Line) -> None:
        """Updates the gauges from a line."""
        for name, (_, column) in GAUGES.items():
            if line.get(column) is not None:
                self.set(name, line[column] * (1000 if name == "images" else 1))

    def saved(self, step: int, secs: float) -> None:
        """Records that a checkpoint of `step` was just saved and took `secs` seconds."""
        self.set("checkpoint_step", step)
        self.set("checkpoint_time_seconds", time.time())
        self.set("checkpoint_duration_seconds", secs)

    def set(self, name: str, value: float) -> None:
        """Sets one value."""
        if name in self._gauges:
            self._gauges[name].set(value)
