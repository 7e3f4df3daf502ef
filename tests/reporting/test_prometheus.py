"""The Prometheus endpoint, and what the alerts, the dashboard and the run book say of it."""

import json
import re
import socket
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.runs import steps
from trainer.errors import UsageError
from trainer.reporting import prometheus
from trainer.reporting.phases import TRAINING, Phases
from trainer.reporting.prometheus import COUNTERS, Telemetry
from trainer.run_dir.saver import NoSaver
from trainer.storage.location import NoUploads
from trainer.training.outputs import SaveAction

ROOT = Path(__file__).resolve().parents[2]


def samples(telemetry):
    """Returns the value of each metric by its name, without phases that are over."""
    return {
        sample.name.removeprefix("gan_trainer_"): sample.value
        for family in telemetry.collect()
        for sample in family.samples
        if sample.value or "phase" not in sample.labels
    }


def test_metrics_without_a_value_are_absent():
    telemetry = Telemetry(0, {"run": "x"})
    counts = dict.fromkeys(COUNTERS, 0)
    before = samples(telemetry)
    assert {name: before[name] for name in COUNTERS} == counts
    assert before.keys() - counts.keys() == {"phase", "progress_time_seconds", "build_info"}
    telemetry.line({"step": 0, "kimg": 0.0, "g_loss": None, "d_loss": 0.0, "rollbacks": 3})
    after = samples(telemetry)
    assert after.keys() - before.keys() == {"step", "images", "d_loss"}
    assert after["rollbacks_total"] == 0  # this process did not roll back


def test_progress_is_that_of_the_phase():
    now = [1000.0]
    phases = Phases(clock=lambda: now[0] - 900)
    telemetry = Telemetry(0, {"run": "x"}, phases=phases, clock=lambda: now[0])

    def progress():
        return samples(telemetry)["progress_time_seconds"]

    phases.enter(TRAINING)
    now[0] += 5
    assert progress() == 1000
    phases.progress(3)
    assert progress() == 1005
    with phases.during("evaluating"):
        now[0] += 3600
        assert progress() == 1005
    assert progress() == 4605  # training goes on from here


def test_failures_are_counted_by_process():
    telemetry, uploads, counted = Telemetry(0, {"run": "x"}), NoUploads(), []
    recorder = SimpleNamespace(flush=None, count=lambda *count: counted.append(count))
    saver = SimpleNamespace(save=lambda done, flush: False)
    outputs = SimpleNamespace(
        telemetry=telemetry, uploads=uploads, saver=saver, run_dir=ROOT, last_good=""
    )
    save = SaveAction(outputs, recorder)
    save(10)
    uploads.failures = 2
    outputs.saver = NoSaver()
    save(20)
    found = samples(telemetry)
    assert (found["failed_saves_total"], found["failed_uploads_total"]) == (1, 2)
    assert [count for count in counted if count[1]] == [("failed_saves", 1), ("failed_uploads", 2)]


def test_prometheus_exports_the_latest_metrics(tiny, run, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    config = tiny(recipe="mlp", length=steps(3), metrics_port=port)
    run(config)
    page = urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=10).read().decode()
    values = dict(
        line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("gan_trainer_")
    )
    label = f'{{run="{config.run_dir}",worker="0"}}'
    assert float(values[f"gan_trainer_step{label}"]) == 3
    assert float(values[f"gan_trainer_images{label}"]) == 24
    assert float(values[f"gan_trainer_checkpoint_step{label}"]) == 3
    assert 0 < float(values[f"gan_trainer_data_wait{label}"]) < 1
    assert float(values[f"gan_trainer_checkpoint_time_seconds{label}"]) > time.time() - 60
    assert float(values[f"gan_trainer_starts{label}"]) == 1
    assert float(values[f"gan_trainer_rollbacks_total{label}"]) == 0
    progress = f'gan_trainer_progress_time_seconds{{phase="saving",{label[1:]}'
    assert float(values[progress]) > time.time() - 60
    assert float(values[f"gan_trainer_target_step{label}"]) == 3
    assert 0 <= float(values[f"gan_trainer_checkpoint_age_seconds{label}"]) < 60
    assert float(values[f'gan_trainer_phase{{phase="saving",{label[1:]}']) == 1
    assert sum(name.startswith("gan_trainer_build_info{") for name in values) == 1
    assert {name.partition("{")[0] for name in values} <= set(prometheus.NAMES)
    with pytest.raises(UsageError, match=f"--metrics_port={port} cannot be opened"):
        Telemetry(port, {"run": "x", "worker": "0"})
    monkeypatch.setitem(prometheus.__dict__["__builtins__"], "__import__", _no_prometheus)
    with pytest.raises(UsageError, match=r"pip install 'gan-trainer\[prometheus\]'"):
        Telemetry(1, {})


def test_prometheus_shows_quality_gpus_and_phase_before_the_run_begins(monkeypatch):
    nvml = SimpleNamespace(
        NVMLError=OSError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=5 * 2**30),
        nvmlDeviceGetUtilizationRates=lambda device: SimpleNamespace(gpu=75),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    phases = Phases()
    telemetry = Telemetry(port, {"run": "x"}, "127.0.0.1", phases)
    telemetry.evaluation({"fid": 7.5, "evaluate_secs": 3.0}, 100)
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    telemetry.close_endpoint()
    for line in (
        'phase{phase="starting",run="x"} 1.0', 'phase{phase="training",run="x"} 0.0',
        'quality{metric="fid",run="x"} 7.5', 'gpu_utilisation{gpu="0",run="x"} 0.75',
        'gpu_memory_bytes{gpu="0",run="x"} 5.36870912e+09',
    ):  # fmt: skip
        assert f"gan_trainer_{line}\n" in page
    assert "evaluate_secs" not in page
    Telemetry(port, {"run": "x"}, "127.0.0.1").close_endpoint()  # the port is free again
    with pytest.raises(UsageError, match="--metrics_port=1 cannot be opened"):
        Telemetry(1, {"run": "x"}, "192.0.2.1")


@pytest.mark.parametrize("name", ["components/prometheus/rules.yaml", "grafana-dashboard.json"])
def test_alerts_and_dashboard_use_metrics_that_exist(name):
    used = set(re.findall(r"gan_trainer_\w+", (ROOT / "k8s" / name).read_text(encoding="utf-8")))
    assert len(used) > 5
    assert used <= set(prometheus.NAMES)


def test_dashboard_shows_all_pods_of_a_run_as_one_and_counters_as_increases():
    board = json.loads((ROOT / "k8s/grafana-dashboard.json").read_text(encoding="utf-8"))
    for target in (target for panel in board["panels"] for target in panel["targets"]):
        metrics = re.findall(r'(\w*\(?)gan_trainer_(\w+){run=~"\$run"}', target["expr"])
        assert len(metrics) == target["expr"].count("by (namespace, run")
        for function, metric in metrics:
            assert (function == "increase(") == metric.endswith("_total"), target["expr"]


def test_run_book_names_every_alert():
    alerts = re.findall(
        r"alert: (\w+)", (ROOT / "k8s/components/prometheus/rules.yaml").read_text(encoding="utf-8")
    )
    book = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    assert [alert for alert in alerts if f"`{alert}`" not in book] == []


def _no_prometheus(name, *rest):
    raise ImportError(name)
