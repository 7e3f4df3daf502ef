"""The limit on starts in a cluster that do not reach the run."""

import dataclasses
import json
from pathlib import Path

import pytest

from trainer.errors import DataError, ExitCode, NoProgressError, StorageError
from trainer.run_dir import starts
from trainer.run_dir.directory import RunDir
from trainer.run_dir.starts import MAX_STARTS
from trainer.storage import run_layout
from trainer.storage.address import Address
from trainer.storage.attempts import Uncounted, counted
from trainer.storage.bucket import Bucket

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    """Returns a run directory, and a function that returns the content of one of its files."""
    if request.param == "disk":
        folder = tmp_path / "run"
        return str(folder), lambda name: (folder / name).read_bytes()
    objects = request.getfixturevalue("gcs").objects["bucket"]
    return "gs://bucket/runs/one", lambda name: objects[f"runs/one/{name}"].content


def start(run_dir, ending=None, record=lambda attempts: None):
    """Starts in a Pod; `ending` is raised before the run is reached, and `record` called then."""
    with counted(run_dir, environment=POD) as attempt:
        if ending is not None:
            raise ending
        attempts = attempt.reached()
        record(attempts)
        return attempts


def attempts_of(read):
    try:
        return json.loads(read(starts.ATTEMPTS))["attempts"]
    except (OSError, KeyError):
        return 0


def test_starts_that_do_not_reach_the_run_are_limited(place):
    run_dir, read = place
    for _ in range(MAX_STARTS):
        with pytest.raises(StorageError):
            start(run_dir, StorageError("the network fails"))
    assert attempts_of(read) == MAX_STARTS
    refusal = "20 consecutive starts made no progress before the first step"
    with pytest.raises(NoProgressError, match=refusal) as error:
        start(run_dir)
    assert error.value.exit_code == ExitCode.DIVERGED


def test_an_explained_error_is_not_counted_and_leaves_nothing(place):
    run_dir, read = place
    with pytest.raises(DataError):
        start(run_dir, DataError("there is no such file"))
    assert attempts_of(read) == 0
    with pytest.raises((OSError, KeyError)):
        read(starts.ATTEMPTS)
    assert not run_layout.is_ours(starts.ATTEMPTS)  # the mirror neither uploads nor downloads it


def test_a_start_that_reaches_the_run_counts_those_before_it(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.config.touch()
    for _ in range(2):
        with pytest.raises(StorageError):
            start(str(tmp_path), StorageError("the network fails"))
    start(str(tmp_path), record=lambda attempts: run_dir.record_start(5, attempts))
    assert not (tmp_path / starts.ATTEMPTS).exists()
    assert starts.Starts.read(tmp_path) == starts.Starts(1, 5, 1)  # there was none before
    with pytest.raises(StorageError):
        start(str(tmp_path), StorageError("the network fails"))
    start(str(tmp_path), record=lambda attempts: run_dir.record_start(5, attempts))
    assert starts.Starts.read(tmp_path) == starts.Starts(2, 5, 3)
    run_dir.record_start(6, 2)
    assert starts.Starts.read(tmp_path) == starts.Starts(3, 6, 1)


def test_a_start_counts_until_it_is_recorded(place):
    """A Pod may be killed after it has reached a run in a bucket, before it uploads anything."""
    run_dir, read = place
    assert [start(run_dir) for _ in range(3)] == [1, 2, 3]
    assert json.loads(read(starts.ATTEMPTS)) == {"attempts": 3, "starts": 0}

    def record(attempts):
        text = json.dumps(dataclasses.asdict(starts.Starts().reached(0, attempts, run_dir)))
        _writer(run_dir)(starts.NAME, text)

    assert start(run_dir, record=record) == 4
    with pytest.raises((OSError, KeyError)):
        read(starts.ATTEMPTS)
    assert start(run_dir) == 1
    assert json.loads(read(starts.ATTEMPTS)) == {"attempts": 1, "starts": 1}


def test_starts_after_progress_are_counted_anew(place):
    """The checkpoint of the latest start shows its progress, which no start has recorded yet."""
    run_dir, _ = place
    save = _writer(run_dir)
    save(starts.NAME, json.dumps(dataclasses.asdict(starts.Starts(9, 40, MAX_STARTS))))
    save("checkpoints/ckpt-40.json", "{}")
    save("checkpoints/ckpt-50.index", "")  # not complete
    with pytest.raises(NoProgressError, match="beyond step 40"):
        start(run_dir)
    save("checkpoints/ckpt-50.json", "{}")
    for _ in range(MAX_STARTS):
        with pytest.raises(StorageError):
            start(run_dir, StorageError("the network fails"))
    with pytest.raises(NoProgressError, match="beyond step 50"):
        start(run_dir)


def _writer(run_dir):
    """Returns a function that writes a text to one of the files of a run directory."""
    if run_dir.startswith("gs://"):
        bucket = Bucket(Address.parse(run_dir, "run_dir"))
        return lambda name, text: bucket.put(name, text.encode())

    def write(name, text):
        path = Path(run_dir, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def lose_a_peer(run_dir, worker):
    """Starts a worker, which loses another one once all have met."""
    with counted(run_dir, worker, POD) as attempt:
        attempt.withdraw()
        attempt.met()
        raise StorageError("a worker is lost")


def test_each_worker_counts_its_starts_until_all_have_met(place):
    run_dir, read = place
    for _ in range(2):
        for worker in (0, 2):
            with pytest.raises(StorageError, match="a worker is lost"):
                lose_a_peer(run_dir, worker)
    assert attempts_of(read) == 2
    with pytest.raises((OSError, KeyError)):
        read("attempts-2.json")
    for _ in range(MAX_STARTS):
        with pytest.raises(StorageError), counted(run_dir, 2, POD):
            raise StorageError("the network fails")
    assert json.loads(read("attempts-2.json"))["attempts"] == MAX_STARTS
    assert not run_layout.is_ours("attempts-2.json")
    with pytest.raises(NoProgressError), counted(run_dir, 2, POD):
        pass
    assert attempts_of(read) == 2


def test_nothing_is_counted_outside_of_pods(tmp_path):
    for worker in (0, 1):
        with counted(str(tmp_path), worker, environment={}) as attempt:
            assert isinstance(attempt, Uncounted)
    assert not list(tmp_path.iterdir())
