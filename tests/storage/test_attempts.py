"""The limit on starts in a cluster that do not reach the run."""

import json

import pytest

from trainer.errors import DataError, ExitCode, NoProgressError, StorageError
from trainer.run_dir import starts
from trainer.run_dir.directory import RunDir
from trainer.run_dir.starts import MAX_STARTS
from trainer.storage import run_layout
from trainer.storage.attempts import Uncounted, counted

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    """Returns a run directory, and a function that returns the content of one of its files."""
    if request.param == "disk":
        folder = tmp_path / "run"
        return str(folder), lambda name: (folder / name).read_bytes()
    objects = request.getfixturevalue("gcs").objects["bucket"]
    return "gs://bucket/runs/one", lambda name: objects[f"runs/one/{name}"].content


def start(run_dir, ending=None):
    """Starts in a Pod; `ending` is raised before the run is reached."""
    with counted(run_dir, is_chief=True, environment=POD) as attempt:
        if ending is not None:
            raise ending
        return attempt.reached()


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
    run_dir.record_start(5, start(str(tmp_path)))
    assert not (tmp_path / starts.ATTEMPTS).exists()
    assert starts.Starts.read(tmp_path) == starts.Starts(1, 5, 1)  # there was none before
    with pytest.raises(StorageError):
        start(str(tmp_path), StorageError("the network fails"))
    run_dir.record_start(5, start(str(tmp_path)))
    assert starts.Starts.read(tmp_path) == starts.Starts(2, 5, 3)
    run_dir.record_start(6, 2)
    assert starts.Starts.read(tmp_path) == starts.Starts(3, 6, 1)


def test_nothing_is_counted_outside_of_pods_and_by_other_workers(tmp_path):
    for is_chief, environment in ((True, {}), (False, POD)):
        with counted(str(tmp_path), is_chief=is_chief, environment=environment) as attempt:
            assert isinstance(attempt, Uncounted)
    assert not list(tmp_path.iterdir())
