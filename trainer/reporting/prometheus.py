"""Optional Prometheus endpoint with the metrics of a run."""

import time
from collections.abc import Mapping
from typing import Any

from trainer.errors import UsageError

GAUGES = {  # name: (what it is, from which column of metrics.jsonl)
    "step": ("generator updates done", "step"),
    "images": ("images seen", "kimg"),
    "images_per_second": ("images per second, without pauses", "images_per_sec"),
    "utilisation": ("share of the matrix-product rate of the devices", "utilisation"),
    "data_wait": ("share of the steps' time spent waiting for data", "data_wait"),
    "d_loss": ("loss of the discriminator", "d_loss"),
    "g_loss": ("loss of the generator", "g_loss"),
    "failed_saves": ("saves that failed", "failed_saves"),
    "failed_uploads": (
        "saves that did not reach the bucket at once",
        "failed_uploads",
    ),
    "rollbacks": ("times the run went back because numbers were not finite", "rollbacks"),
    "collapse": ("1 once the run looks collapsed", "collapse"),
    "sample_diversity": ("spread of samples as a share of that of reals", "sample_diversity"),
}


class Telemetry:
    """Serves the newest values at the endpoint /metrics."""

    def __init__(self, port: int, labels: Mapping[str, str]) -> None:
        """Opens the endpoint.

        Args:
          port: port to listen on; 0 for no endpoint.
          labels: labels of every value.

        Raises:
          UsageError: if the port is taken, or the package prometheus_client is not there.
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
            "resumes": ("starts of the run after its first",),
            "checkpoint_step": ("step of the newest checkpoint",),
            "checkpoint_time_seconds": ("when it was saved, seconds since 1970",),
            "checkpoint_duration_seconds": ("how long saving it took",),
        }
        for name, (what, *_) in {**GAUGES, **more}.items():
            gauge = prometheus.Gauge(f"gan_trainer_{name}", what, list(labels), registry=registry)
            self._gauges[name] = gauge.labels(*labels.values())
        try:
            prometheus.start_http_server(port, registry=registry)
        except OSError as error:
            raise UsageError(
                f"--metrics_port={port} cannot be listened on ({error.strerror})."
            ) from None

    def line(self, record: Mapping[str, Any]) -> None:
        """Updates the gauges from a line of metrics.jsonl."""
        for name, (_, column) in GAUGES.items():
            if record.get(column) is not None:
                self.set(name, record[column] * (1000 if name == "images" else 1))

    def saved(self, step: int, secs: float) -> None:
        """Records that a checkpoint of `step` was just saved and took `secs` seconds."""
        self.set("checkpoint_step", step)
        self.set("checkpoint_time_seconds", time.time())
        self.set("checkpoint_duration_seconds", secs)

    def set(self, name: str, value: float) -> None:
        """Sets one value."""
        if name in self._gauges:
            self._gauges[name].set(value)
