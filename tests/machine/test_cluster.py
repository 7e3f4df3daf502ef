"""Tests of several workers: their addresses, and real processes on the loopback interface."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.runs import records
from trainer import __version__
from trainer.errors import ExitCode, PeerError, PeerLostError, UsageError
from trainer.machine import cluster, replicas
from trainer.machine.agreement import check_same_on_all_workers
from trainer.machine.cluster import Cluster
from trainer.reporting.phases import WAITING
from trainer.run_dir import provenance
from trainer.run_dir.checkpoint_files import list_checkpoints

ROOT = Path(__file__).resolve().parents[2]


def tf_config(jobs, task, index):
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": task, "index": index}})}


def test_a_machine_alone_is_no_cluster():
    assert cluster.find_cluster("", None, {}) is None
    assert cluster.find_cluster("", None, tf_config({"chief": ["a:1"]}, "chief", 0)) is None


def test_workers_and_the_index_of_a_job():
    found = cluster.find_cluster(
        "job-{0..2}.svc:2222, other:1", None, {"JOB_COMPLETION_INDEX": "3"}
    )
    names = ("job-0.svc:2222", "job-1.svc:2222", "job-2.svc:2222", "other:1")
    assert found == Cluster(names, 3)
    assert not found.is_chief
    assert cluster.find_cluster("a:1,b:2", 0, {"JOB_COMPLETION_INDEX": "1"}) == Cluster(
        ("a:1", "b:2"), 0
    )


def test_tf_config_wins_and_its_chief_comes_first():
    jobs = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    found = cluster.find_cluster("x:1,y:1", 0, tf_config(jobs, "worker", 1))
    assert found == Cluster(("a:1", "b:1", "c:1"), 2)
    assert cluster.find_cluster("", None, tf_config(jobs, "chief", 0)).is_chief


@pytest.mark.parametrize(
    ("workers", "index", "environment", "message"),
    [
        ("a:1,b:1", None, {}, "the index of this one is unknown"),
        ("a:1,b:1", 2, {}, "the index of this worker is 2. Use an index from 0 to 1."),
        ("a:1,b:1", -1, {}, "the index of this worker is -1"),
        ("a:1,b", 0, {}, "'b' is not valid. Use HOST:PORT."),
        ("a:1,b:70000", 0, {}, "'b:70000' is not valid. Use HOST:PORT."),
        ("a:1,a:1", 0, {}, "repeats an address"),
        ("", None, {"TF_CONFIG": "{"}, "is not valid"),
        ("", None, {"TF_CONFIG": "[]"}, "is not valid"),
        ("", None, {"TF_CONFIG": '{"cluster": {}}'}, "is not valid"),
        ("", None, tf_config({"worker": ["a:1"]}, "worker", 1), "no task worker 1"),
        ("", None, tf_config({"ps": ["a:1"], "worker": ["b:1"]}, "worker", 0), "the job 'ps'"),
    ],
)
def test_wrong_clusters_are_named(workers, index, environment, message):
    with pytest.raises(UsageError) as error:
        cluster.find_cluster(workers, index, environment)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_pods_may_take_longer_to_come():
    pod = {"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    found = cluster.find_cluster("a:1,b:1", None, pod)
    assert (found.wait_secs, found.wait_code) == (3000, ExitCode.STOPPED)
    found = cluster.find_cluster("a:1,b:1", 0, {})
    assert (found.wait_secs, found.wait_code) == (300, ExitCode.CRASH)


def test_a_host_without_an_address_and_a_taken_port():
    now = [0.0]

    def sleep(secs):
        now[0] += 100 * secs

    def resolve(host, port):
        if host == "nowhere":
            raise OSError(-2, "Name or service not known")

    clock = dict(sleep=sleep, clock=lambda: now[0])
    with pytest.raises(PeerError, match=r"nowhere does not resolve after 300 s \(Name or service"):
        Cluster(("localhost:1", "nowhere:1"), 0).wait_for_host_names(resolve=resolve, **clock)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        here = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"the port of {here} cannot be used on this machine"):
            Cluster((here, "other:1"), 0).wait_for_host_names(resolve=resolve, **clock)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(folder, *arguments, count=2, own=((), ()), sources=(ROOT, ROOT)):
    """Starts the workers of a run as processes on this machine, each from a folder of sources."""
    workers = ",".join(f"localhost:{port}" for port in free_ports(count))
    return [
        subprocess.Popen(
            [sys.executable, "-m", "trainer", "train", f"--workers={workers}", *arguments, *extra],
            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={
                **os.environ, "TRAINER_DATA_DIR": "", "JOB_COMPLETION_INDEX": str(index),
                "PYTHONPATH": str(source),
            },
        )
        for index, extra, source in zip(range(count), own, sources, strict=True)
    ]  # fmt: skip


def ends(workers, timeout=180):
    """Waits for processes and returns their exit codes and outputs."""
    outputs = [worker.communicate(timeout=timeout)[0] for worker in workers]
    return [worker.returncode for worker in workers], outputs


def wait_until(is_done, secs=60):
    """Waits until a function returns a true value."""
    deadline = time.monotonic() + secs
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


TINY = [
    "--g_width=0.05", "--d_width=0.05", "--batch_size=8", "--sample_grid=2", "--devices=cpu",
    "--log_every_steps=1",
]  # fmt: skip


def test_two_machines_train_as_one_does(tmp_path, trainer):
    arguments = [*TINY, "--steps=4", "--checkpoint_every_kimg=0.016"]
    codes, outputs = ends(start_workers(tmp_path, *arguments, "--run_dir=two"))
    assert codes == [0, 0], outputs
    one = trainer("train", *arguments, "--run_dir=one")
    assert one.returncode == 0, one.stderr
    pairs = list(zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True))
    assert len(pairs) == 4
    for single, double in pairs:
        for name in ("d_loss", "g_loss", "d_acc", "g_acc"):
            assert double[name] == pytest.approx(single[name], rel=2e-3, abs=1e-4), name
    # Only the chief writes to the run directory, except for the events of the other worker.
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {path.name for path in (tmp_path / "one").iterdir()} | {"events-1.jsonl"}
    others = [json.loads(line) for line in (tmp_path / "two/events-1.jsonl").open()]
    assert [(e["event"], e["worker"]) for e in others] == [("start", 1), ("complete", 1)]
    assert "Samples" in outputs[0]
    assert "Samples" not in outputs[1]
    # A checkpoint of several workers can be resumed on one machine.
    more = trainer("train", *TINY, "--steps=5", "--run_dir=two")
    assert "Resuming from two/checkpoints/ckpt-4" in more.stdout


def test_workers_with_other_flags_are_refused(tmp_path):
    own = (["--g_lr=0.001"], ["--g_lr=0.002"])
    workers = start_workers(tmp_path, *TINY, "--steps=4", "--run_dir=run", own=own)
    codes, outputs = ends(workers)
    assert codes == [ExitCode.USAGE] * 2, outputs
    for output in outputs:
        assert "The workers were started with different flags, or see different data" in output
    assert not (tmp_path / "run").exists()


COUNT_COLLECTIVES = """
import sys, numpy, tensorflow as tf
from trainer import recipes
from trainer.data import pipeline
from trainer.data.images import ImageSet
from trainer.machine.cluster import Cluster
from trainer.reporting.phases import WAITING
from trainer.machine.replicas import create_replicas

cluster = Cluster(tuple(sys.argv[2:]), int(sys.argv[1]))
replicas = create_replicas(recipes.resolve(dict(devices="cpu")), cluster)
data = ImageSet(numpy.zeros([8, 8, 8, 1], "uint8"), numpy.zeros(8, "int32"), ("0",))
plan = pipeline.BatchPlan(seed=0, batch_size=4, batches_per_step=1)
batches = replicas.make_iterator(
    lambda served: pipeline.batches(data, plan, replicas=served, num_replicas=2)
)
graph = tf.function(lambda: next(batches), autograph=False).get_concrete_function().graph
definition = graph.as_graph_def()
nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
print("batches", sum("IteratorGetNext" in node.op for node in nodes))
print("collectives", sum(node.op.startswith("Collective") for node in nodes))
replicas.barrier()
"""


def test_the_next_batch_costs_no_collective(tmp_path):
    """TensorFlow would ask all workers at each step whether a finite data set has ended."""
    workers = [f"localhost:{port}" for port in free_ports(2)]
    commands = [[sys.executable, "-c", COUNT_COLLECTIVES, str(k), *workers] for k in (0, 1)]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for command in commands
    ]
    codes, outputs = ends(processes, timeout=90)
    assert codes == [0, 0], outputs
    for output in outputs:
        assert "batches 1" in output
        assert "collectives 0" in output


def test_workers_with_other_sources_are_refused(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ROOT / "trainer", other / "trainer")
    with (other / "trainer" / "models" / "norms.py").open("a") as module:
        module.write("# Changed.\n")
    workers = start_workers(tmp_path, *TINY, "--steps=4", "--run_dir=run", sources=(ROOT, other))
    codes, outputs = ends(workers)
    assert codes == [ExitCode.USAGE] * 2, outputs
    here, there = (provenance.hash_sources(folder / "trainer") for folder in (ROOT, other))
    assert here != there
    named = [
        f"worker {k} has version {__version__} (sources {digest})"
        for k, digest in enumerate((here, there))
    ]
    for output in outputs:
        assert f"different versions of the trainer: {', '.join(named)}. Install" in output
    assert not (tmp_path / "run").exists()


def test_a_worker_of_a_former_version_ends_before_it_is_named(monkeypatch):
    """It compares one text only, so it does not answer the question for its version."""
    two = replicas.Replicas(None, ("CPU:0",), "float32", True, num_workers=2)
    monkeypatch.setattr(replicas.Replicas, "broadcast", lambda self, value: value + 1)
    monkeypatch.setattr(replicas.Replicas, "any_worker", lambda self, flag: flag)

    def lost(self, value):
        raise PeerLostError("Stopped: another worker was lost")

    monkeypatch.setattr(replicas.Replicas, "sum_over_workers", lost)
    with pytest.raises(UsageError, match="worker 0 has version 1, and another worker has ended"):
        check_same_on_all_workers(two, "version 1", "flags")


def test_a_worker_that_has_left_is_missed_only_before_all_have_met(monkeypatch):
    """Whoever passes a barrier may end while others still receive its last message."""
    two = replicas.Replicas(None, ("CPU:0",), "float32", True, num_workers=2)
    met = []

    def barrier(self):
        met.append(None)
        if len(met) == lost_at:
            raise PeerLostError("Stopped: another worker was lost")

    monkeypatch.setattr(replicas.Replicas, "barrier", barrier)
    lost_at = 2
    two.leave()
    assert len(met) == 2
    met.clear()
    lost_at = 1
    with pytest.raises(PeerLostError):
        two.leave()


def test_a_worker_that_is_lost_while_variables_are_created_is_named():
    """The other workers receive their initial values from the chief."""
    strategy = tf.distribute.get_strategy()
    two = replicas.Replicas(strategy, ("CPU:0",), "float32", True, num_workers=2)
    lost = tf.errors.UnavailableError(None, None, "Collective ops is aborted by: Connection reset")
    with pytest.raises(PeerLostError, match="another worker was lost"), two.scope():
        raise lost
    one = replicas.Replicas(strategy, ("CPU:0",), "float32", True)
    with pytest.raises(tf.errors.UnavailableError), one.scope():
        raise lost


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("kill", [False, True])
def test_one_worker_is_stopped_or_killed(tmp_path, victim, kill):
    arguments = [*TINY, "--checkpoint_every_kimg=0.08", "--log_every_secs=0", "--run_dir=run"]
    workers = start_workers(tmp_path, *arguments, "--steps=100000")
    while "images/s" not in workers[0].stdout.readline():
        assert workers[0].poll() is None
    (workers[victim].kill if kill else workers[victim].terminate)()
    codes, outputs = ends(workers, timeout=30)
    expected = [ExitCode.STOPPED] * 2
    if kill:
        expected[victim] = -9
        assert "Stopped: another worker was lost" in outputs[1 - victim]
    assert codes == expected, outputs
    done = records(tmp_path / "run")[-1]["step"]
    if not kill:
        assert f"Stopped on request after {done} of" in outputs[victim]
        assert f"Stopped with another worker after {done} of" in outputs[1 - victim]
    codes, outputs = ends(start_workers(tmp_path, *arguments, f"--steps={done + 20}"))
    assert codes == [0, 0], outputs
    assert "Resuming from run/checkpoints/ckpt-" in outputs[0]
    lines = records(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, done + 21))
    assert np.isfinite([line["d_loss"] for line in lines]).all()


@pytest.mark.faults
def test_a_worker_that_does_not_come_is_not_waited_for_for_ever(tmp_path):
    code = (
        "import sys; from trainer.machine import cluster, replicas; cluster.WAIT_SECS = 3.0\n"
        "from trainer.__main__ import run_and_end; run_and_end(sys.argv[1:])"
    )
    workers = ",".join(f"localhost:{port}" for port in free_ports(2))
    for index in (0, 1):
        command = [
            sys.executable, "-c", code, "train", *TINY, f"--workers={workers}",
            f"--worker_index={index}", "--run_dir=run",
        ]  # fmt: skip
        alone = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )  # fmt: skip
        assert alone.returncode == ExitCode.CRASH, alone.stderr
        assert f"{workers.split(',')[1 - index]}" in alone.stderr
        assert "did not come within 3 s" in alone.stderr
        assert "Traceback" not in alone.stderr


@pytest.mark.faults
def test_a_worker_that_waits_is_alive_and_obeys(tmp_path):
    """TensorFlow's own wait would block the heartbeat, the metrics and the signals."""
    (port,) = free_ports(1)
    heartbeat = tmp_path / "heartbeat"
    own = [f"--heartbeat={heartbeat}", f"--metrics_port={port}"]
    for index in (0, 1):
        heartbeat.unlink(missing_ok=True)
        workers = ",".join(f"localhost:{port}" for port in free_ports(2))
        command = [
            sys.executable, "-m", "trainer", "train", *TINY, *own, f"--workers={workers}",
            f"--worker_index={index}", "--run_dir=run",
        ]  # fmt: skip
        alone = subprocess.Popen(
            command, cwd=tmp_path, text=True, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        )  # fmt: skip
        try:
            wait_until(lambda: heartbeat.exists() and WAITING in heartbeat.read_text())
            first = heartbeat.read_text()
            wait_until(lambda first=first: heartbeat.read_text() != first)
            with urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=5) as answer:
                assert f'phase="{WAITING}"' in answer.read().decode()
            alone.terminate()
            output = alone.communicate(timeout=10)[1]
        finally:
            alone.kill()
        assert alone.returncode == ExitCode.TERMINATED
        assert f"Stopped on request while {WAITING}, before there was anything" in output
        assert not (tmp_path / "run").exists()


def test_workers_with_gpus_use_them(monkeypatch):
    """TensorFlow does not detect GPUs: without num_accelerators each worker gets one CPU."""
    given = {}

    def resolver(spec, **options):
        given.update(options)
        raise StopIteration

    monkeypatch.setattr(tf.distribute.cluster_resolver, "SimpleClusterResolver", resolver)
    with pytest.raises(StopIteration):
        replicas._joined(Cluster(("a:1", "b:1"), 0), gpus=4)
    assert given["num_accelerators"] == {"GPU": 4}
    strategy = SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(
        tf.distribute.cluster_resolver, "SimpleClusterResolver", lambda *a, **b: None
    )
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda *a: strategy)
    with pytest.raises(PeerError, match="found 2 replicas on 2 machines instead of 8"):
        replicas._joined(Cluster(("a:1", "b:1"), 0), gpus=4)


# Two network namespaces, each with its own interface, connected by a virtual cable.
MACHINES = """
ip link add name here type veth peer name there || exit 99
unshare --net sleep 300 & far=$!
until [ "$(readlink /proc/$far/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link set there netns $far && ip addr add 10.9.0.1/24 dev here || exit 99
ip link set here up && ip link set lo up || exit 99
nsenter -t $far --net sh -c \
  "ip addr add 10.9.0.2/24 dev there && ip link set there up && ip link set lo up" || exit 99
workers=--workers=10.9.0.1:2222,10.9.0.2:2222
JOB_COMPLETION_INDEX=0 "$@" $workers > first 2>&1 & first=$!
JOB_COMPLETION_INDEX=1 nsenter -t $far --net "$@" $workers > second 2>&1 & second=$!
{meanwhile}
wait $first; echo $?
wait $second; echo $?
kill $far
"""
CUT = """
until grep -q images/s first; do sleep 0.1; done
ip link set here down
"""


def on_two_machines(folder, meanwhile, *arguments):
    """Returns exit codes and outputs of a run with two workers in network namespaces."""
    inside = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c"]
    script = MACHINES.replace("{meanwhile}", meanwhile)
    answer = subprocess.run(
        [*inside, script, "sh", sys.executable, "-m", "trainer", "train", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=180, check=False,
        env={**os.environ, "TRAINER_DATA_DIR": ""},
    )  # fmt: skip
    if answer.returncode == 99 or "unshare" in answer.stderr or "not found" in answer.stderr:
        pytest.skip(f"no network namespaces here: {answer.stderr}")
    outputs = [(folder / name).read_text() for name in ("first", "second")]
    return [int(code) for code in answer.stdout.split()], outputs


@pytest.mark.faults
def test_a_cable_that_is_cut_stops_both_and_nothing_is_lost(tmp_path):
    arguments = [*TINY, "--checkpoint_every_kimg=0.08", "--log_every_secs=0", "--run_dir=run"]
    codes, outputs = on_two_machines(tmp_path, CUT, *arguments, "--steps=100000")
    assert codes == [ExitCode.STOPPED] * 2, outputs
    assert all("Stopped: another worker was lost" in output for output in outputs)
    done = list_checkpoints(tmp_path / "run" / "checkpoints")[0].name.partition("-")[2]
    codes, outputs = on_two_machines(tmp_path, "", *arguments, f"--steps={int(done) + 5}")
    assert codes == [0, 0], outputs
    assert f"Resuming from run/checkpoints/ckpt-{done}" in outputs[0]
    lines = records(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, int(done) + 6))
