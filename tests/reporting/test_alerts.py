"""The alerts for Prometheus, evaluated on the metrics of simulated Pods."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import promql
from tests.helpers.scraped_pods import RUN, Prometheus

RULES = promql.read_rules(
    Path(__file__).resolve().parents[2] / "k8s/components/prometheus/rules.yaml"
)


def started(prometheus, starts=1, saved_at=None):
    """Starts a Pod that reads the data and compiles for three minutes."""
    pod = prometheus.start()
    pod.spend("reading", 1)
    pod.restore(starts, saved_at)
    pod.spend("compiling", 2)
    return pod


def healthy(prometheus):
    started(prometheus).train(600)


def complete(prometheus):
    pod = started(prometheus)
    pod.train(120)
    prometheus.end(pod)
    prometheus.wait(180)


def long_reading(prometheus):
    pod = prometheus.start()
    pod.spend("reading", 55)
    pod.restore(1, None)
    pod.spend("compiling", 3)
    pod.train(60)


def restart(prometheus):
    pod = started(prometheus)
    pod.train(100)
    prometheus.end(pod)
    prometheus.wait(10)
    started(prometheus, 2, prometheus.now - 1200).train(100)


def preemptions(prometheus, minutes, count):
    for starts in range(1, count + 1):
        pod = started(prometheus, starts, prometheus.now - 60)
        pod.train(minutes, save_minutes=5)
        prometheus.end(pod)
        prometheus.wait(5)


def rare_preemptions(prometheus):
    preemptions(prometheus, minutes=30, count=8)


def frequent_preemptions(prometheus):
    preemptions(prometheus, minutes=7, count=8)


def long_evaluation(prometheus):
    pod = started(prometheus)
    pod.train(60)
    for _ in range(2):
        pod.spend("evaluating", 180)
        pod.train(60)


def peer_evaluates(prometheus):
    chief, worker = started(prometheus), prometheus.start(worker=1)
    chief.train(20)
    worker.phases.enter("training")
    with worker.phases.during("waiting for peers"):
        chief.spend("evaluating", 200)


def resume_after_a_day(prometheus):
    pod = started(prometheus)
    pod.train(60)
    prometheus.end(pod)
    prometheus.wait(24 * 60)
    started(prometheus, 2, prometheus.now - 86400).train(240, save_minutes=100)


def checkpoints_far_apart(prometheus):
    started(prometheus).train(900, save_minutes=300)


def no_checkpoint(prometheus):
    pod = started(prometheus)
    pod.telemetry.saved(0, 1.0)
    pod.train(300, save_minutes=1000)
    prometheus.end(pod)
    prometheus.wait(10)
    # Too short for the alert by itself.
    started(prometheus, 2, 0.0).train(100, save_minutes=1000)


def stalled_steps(prometheus):
    pod = started(prometheus)
    pod.train(60)
    prometheus.wait(30)


def stalled_steps_that_the_watchdog_ends(prometheus):
    pod = started(prometheus)
    pod.train(60)
    prometheus.wait(19)  # the liveness probe, if the watchdog is off
    prometheus.end(pod)
    prometheus.wait(10)
    started(prometheus, 2, prometheus.now - 60).train(60)


def waiting_for_peers(prometheus):
    for _ in range(3):
        pod = prometheus.start()
        pod.spend("waiting for peers", 50)
        prometheus.end(pod)
        prometheus.wait(10)


def peers_lost_for_hours(prometheus):
    pod = started(prometheus)
    pod.train(60)
    prometheus.end(pod)
    waiting_for_peers(prometheus)


def starts_that_never_train(prometheus):
    for _ in range(15):
        pod = prometheus.start()
        pod.spend("reading", 2)
        prometheus.end(pod)
        prometheus.wait(10)


def failed(prometheus, name):
    pod = started(prometheus)
    pod.train(60)
    pod.telemetry.count(name)
    pod.train(90)


def failed_save(prometheus):
    failed(prometheus, "failed_saves_total")


def failed_save_before_a_restart(prometheus):
    pod = started(prometheus)
    pod.train(60)
    pod.telemetry.count("failed_saves_total")
    prometheus.wait(1)
    prometheus.end(pod)
    started(prometheus, 2, prometheus.now - 60).train(90)


def failed_upload(prometheus):
    failed(prometheus, "failed_uploads_total")


def rollback(prometheus):
    failed(prometheus, "rollbacks_total")


def failures_of_earlier_processes(prometheus):
    pod = started(prometheus, 2, 0.0)
    pod.train(2)
    pod.line |= {"failed_saves": 2, "failed_uploads": 1, "rollbacks": 1}  # of the whole run
    pod.train(90)


def collapse(prometheus):
    pod = started(prometheus)
    pod.train(30)
    pod.line["collapse"] = 1.0
    pod.train(15)
    pod.line["collapse"] = 0.0
    pod.train(15)


def collapse_that_is_over(prometheus):
    pod = started(prometheus, 2, 0.0)
    pod.line["collapse"] = 1.0  # that of an earlier process, in the first line
    pod.train(1)
    pod.line["collapse"] = 0.0
    pod.train(60)


SCENARIOS = [
    (healthy, ""),
    (complete, ""),
    (long_reading, ""),
    (restart, ""),
    (rare_preemptions, ""),
    (frequent_preemptions, "RestartsOften"),
    (long_evaluation, ""),
    (peer_evaluates, ""),
    (resume_after_a_day, ""),
    (checkpoints_far_apart, ""),
    (no_checkpoint, "CheckpointOld"),
    (stalled_steps, "StepsStopped"),
    (stalled_steps_that_the_watchdog_ends, ""),
    (waiting_for_peers, "DoesNotTrain"),
    (peers_lost_for_hours, "DoesNotTrain"),
    (starts_that_never_train, "DoesNotTrain"),
    (failed_save, "SavesFail"),
    (failed_save_before_a_restart, "SavesFail"),
    (failed_upload, "UploadsFail"),
    (rollback, "Diverges"),
    (failures_of_earlier_processes, ""),
    (collapse, "Collapses"),
    (collapse_that_is_over, ""),
]
each_scenario = pytest.mark.parametrize(
    ("scenario", "expected"), SCENARIOS, ids=[scenario.__name__ for scenario, _ in SCENARIOS]
)


@each_scenario
def test_each_scenario_fires_its_alert_and_no_other(scenario, expected):
    prometheus = Prometheus(promql.Alerts(RULES))
    scenario(prometheus)
    assert prometheus.alerts == ({f"GanTrainer{expected}"} if expected else set())
    labels = {labels for alerts in prometheus.fired.values() for _, labels in alerts}
    assert labels <= {(("namespace", "gan"), ("run", RUN))}


def test_every_alert_has_a_scenario():
    tried = {f"GanTrainer{expected}" for _, expected in SCENARIOS if expected}
    assert tried == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("scenario", [failed_save, failed_upload, rollback, collapse])
def test_alerts_end_after_the_event(scenario):
    prometheus = Prometheus(promql.Alerts(RULES))
    scenario(prometheus)
    assert prometheus.fired[prometheus.now] == set()


@pytest.mark.parametrize(
    "expression",
    [
        "rate(gan_trainer_starts[5m]) > 0",
        "max by (run) (increase(gan_trainer_rollbacks_total[1h])) > 3",
        "max by (run) (gan_trainer_step[1h]) > 3",
        "max by (run) (max_over_time(gan_trainer_step)) > 3",
        "max by (run) (gan_trainer_step) or vector(1) > 3",
        "max by (run) (gan_trainer_step)",
    ],
)
def test_other_forms_of_promql_are_refused(expression):
    with pytest.raises(ValueError, match=r"form|compar"):
        promql.evaluate(expression, {}, 0.0)


def test_promtool_finds_the_same_alerts(tmp_path):
    """Holds the evaluation of these tests against Prometheus itself."""
    if not shutil.which("promtool"):
        pytest.skip("promtool, which Debian's package prometheus contains, is not installed")
    rules = [{key: rule[key] for key in ("alert", "expr", "for") if key in rule} for rule in RULES]
    (tmp_path / "rules.json").write_text(
        json.dumps({"groups": [{"name": "gan-trainer", "rules": rules}]})
    )
    tests = {
        "rule_files": ["rules.json"],
        "evaluation_interval": "1m",
        "tests": [_promtool_test(scenario) for scenario, _ in SCENARIOS],
    }
    path = tmp_path / "tests.json"
    path.write_text(json.dumps(tests))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:2000] + done.stderr[:2000]


def _promtool_test(scenario):
    """Returns the test of promtool that expects the alerts which fire here, minute by minute."""
    prometheus = Prometheus(promql.Alerts(RULES))
    scenario(prometheus)
    expected = [
        {
            "eval_time": f"{now:.0f}s",
            "alertname": rule["alert"],
            "exp_alerts": [
                {"exp_labels": dict(labels)} for name, labels in fired if name == rule["alert"]
            ],
        }
        for now, fired in prometheus.fired.items()
        for rule in RULES
    ]
    inputs = [_input_series(key, *samples) for key, samples in prometheus.series.items()]
    return {
        "name": scenario.__name__,
        "interval": "30s",
        "input_series": inputs,
        "alert_rule_test": expected,
    }


def _input_series(key, times, samples):
    """Returns a series as promtool reads it: samples every 30 seconds from time 0."""
    name, labels = key
    values = ["_"] * (1 + int(times[-1]) // 30)
    for time, sample in zip(times, samples, strict=True):
        values[int(time) // 30] = "stale" if sample is None else str(sample)
    pairs = ",".join(f'{label}="{value}"' for label, value in sorted(labels))
    return {"series": f"{name}{{{pairs}}}", "values": " ".join(values)}
