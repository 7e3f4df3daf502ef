"""Networks reproduce the numbers of published implementations."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import conformance

GOLDEN = Path(__file__).parents[1] / "golden"

# What networks of this package do not have: see the README of benchmarks/.
ABSENT = {
    "sngan": r".*/(out/D_as_code_.*|sn/top_singular_value/.*|.*l5\.(weight_[uv]|sn_u|sn_sigma)"
    r"|param/D/(l_y\.sn_sigma|block.*\.weight_u))",
    "r3gan-tiny": "nothing",
}


@pytest.mark.parametrize(("name", "count"), [("sngan", 166), ("r3gan-tiny", 70)])
def test_networks_reproduce_a_golden_file(name, count):
    report = conformance.compare(GOLDEN / f"{name}.npz")
    assert len(report.differences) >= count
    assert not [d for d in report.differences if not d.is_within]
    unknown = [n for n in report.without_counterpart if not re.fullmatch(ABSENT[name], n)]
    assert not unknown


def test_a_difference_and_an_array_without_counterpart_are_named(tmp_path, capsys):
    with np.load(GOLDEN / "r3gan-tiny.npz") as file:
        arrays = dict(file)
    arrays["out/G_images"] = arrays["out/G_images"] * 1.0001
    arrays["out/other"] = np.zeros(3, np.float32)
    np.savez(tmp_path / "changed.npz", **arrays)
    assert conformance.main([str(tmp_path / "changed.npz")]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"1\.0e-04  out/G_images  exceeds 1e-05", shown)
    assert re.search(r"without counterpart:\n +out/other", shown)
    del arrays["param/G/AggregationLayer.Layer.weight"]
    np.savez(tmp_path / "incomplete.npz", **arrays)
    (tmp_path / "text.npz").write_text("text")
    assert conformance.main([str(tmp_path / f"{n}.npz") for n in ("incomplete", "text")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert "incomplete.npz lacks the array 'param/G/AggregationLayer.Layer.weight'." in errors[0]
    assert "text.npz is not a readable .npz file" in errors[1]
    np.savez(tmp_path / "other.npz", other=np.zeros(3))
    assert conformance.main([str(tmp_path / "other.npz")]) == 0
    assert "0 arrays compared" in capsys.readouterr().out
