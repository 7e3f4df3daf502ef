"""The benchmark of two versions, with this version as the other one."""

import pytest

from benchmarks import versions


def test_two_versions_are_compared():
    options = dict(g_width=0.05, d_width=0.05, batch_size=8, devices="cpu")
    row = versions.row_of("mlp", versions.HERE, options, starts=1, rounds=2, secs=0.05)
    assert row["recipe"] == "mlp"
    assert min(row["images/s"], row["other images/s"]) > 0
    assert row["q1"] <= row["ratio"] <= row["q3"]


def test_a_version_that_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="a version failed"), versions.started(tmp_path, {}):
        pass
