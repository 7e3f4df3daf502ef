"""Simulates the Pods of a run, and Prometheus, which scrapes them every minute.

It evaluates the alerts half a minute after each scrape.  No sample is then exactly at the edge of
a window, which versions of Prometheus treat differently.
"""

from collections import defaultdict

from tests.helpers.promql import Alerts, Key
from trainer.reporting.phases import TRAINING, Phases
from trainer.reporting.prometheus import Telemetry

RUN = "/runs/x"


class Pod:
    """A Pod that reports what a trainer does."""

    def __init__(self, name: str, worker: int, prometheus: "Prometheus") -> None:
        """Begins with the phase "starting"."""

        def clock() -> float:
            return prometheus.now

        self.name, self.prometheus = name, prometheus
        self.phases = Phases(clock=clock)
        labels = {"run": RUN, "worker": str(worker)}
        self.telemetry = Telemetry(0, labels, phases=self.phases, clock=clock)
        self.line = {"step": 0, "kimg": 0.0}

    def restore(self, starts: int, saved_at: float | None) -> None:
        """Restores a checkpoint, if there is one, and counts the start."""
        self.telemetry.set("step", 0)
        self.telemetry.set("target_step", 10**6)
        self.telemetry.set("starts", starts)
        if saved_at is not None:
            self.telemetry.restored(0, saved_at)

    def train(self, minutes: int, save_minutes: int = 30) -> None:
        """Trains, and saves at intervals."""
        self.phases.enter(TRAINING)
        for minute in range(1, minutes + 1):
            self.line["step"] += 100
            self.phases.progress(self.line["step"])
            self.telemetry.line(self.line)
            if minute % save_minutes == 0:
                self.telemetry.saved(self.line["step"], 1.0)
            self.prometheus.wait(1)

    def spend(self, phase: str, minutes: int) -> None:
        """Spends time in a phase without a sign of progress."""
        with self.phases.during(phase):
            self.prometheus.wait(minutes)


class Prometheus:
    """Scrapes Pods and evaluates alerts.

    Attributes:
      now: seconds since 1970.
      series: the samples.
      fired: by time, the names and labels of the alerts that fired.
    """

    def __init__(self, alerts: Alerts) -> None:
        self.now = 0.0
        self.series: dict[Key, tuple[list[float], list[float | None]]] = defaultdict(
            lambda: ([], [])
        )
        self.fired: dict[float, set[tuple[str, tuple[tuple[str, str], ...]]]] = {}
        self._alerts, self._pods, self._started = alerts, set(), 0
        self._present: set[Key] = set()

    def start(self, worker: int = 0) -> Pod:
        """Starts a Pod."""
        self._started += 1
        pod = Pod(f"gan-{self._started}", worker, self)
        self._pods.add(pod)
        return pod

    def end(self, pod: Pod) -> None:
        """Ends a Pod."""
        self._pods.remove(pod)

    def wait(self, minutes: int) -> None:
        """Scrapes the Pods and evaluates the alerts once a minute."""
        for _ in range(minutes):
            self.now += 30
            self._scrape()
            self.now += 30
            self.fired[self.now] = self._alerts.firing(self.series, self.now)

    @property
    def alerts(self) -> set[str]:
        """The names of all alerts that have fired."""
        return {name for alerts in self.fired.values() for name, _ in alerts}

    def _scrape(self) -> None:
        found = {}
        for pod in self._pods:
            target = {"namespace": "gan", "pod": pod.name}
            for family in pod.telemetry.collect():
                for sample in family.samples:
                    labels = frozenset({**sample.labels, **target}.items())
                    found[sample.name, labels] = sample.value
        for key in found.keys() | self._present:
            times, samples = self.series[key]
            times.append(self.now)
            samples.append(found.get(key))
        self._present = set(found)
