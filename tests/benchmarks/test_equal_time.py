"""The benchmark of recipes that train for the same time: its results and its errors."""

import json

import pytest

from benchmarks import equal_time


def test_finished_runs_are_read_and_averaged(tmp_path):
    results = []
    for seed, fid in enumerate((3.0, 5.0)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        metrics = dict(fid=fid, conditional_accuracy=0.9, recall=0.5, kimg=3.0)
        (folder / "evaluation.json").write_text(json.dumps(metrics))
        results.append(equal_time.trained(folder, {}, [0]))
    row = equal_time.row_of("dcgan", "none", results)
    assert (row["fid"], row["fid_min"], row["fid_max"], row["kimg"]) == (4.0, 3.0, 5.0, 3.0)


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"exit code 65: .*nothing"):
        equal_time.trained(tmp_path / "run", dict(dataset="nothing"), [0])
