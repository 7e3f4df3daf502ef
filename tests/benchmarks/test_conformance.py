"""Networks and augmentations reproduce the numbers of published implementations."""

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
    "augment": r"ada/.*/(C|margins_x0x1y0y1)",
}


@pytest.mark.parametrize(("name", "count"), [("sngan", 166), ("r3gan-tiny", 70), ("augment", 48)])
def test_a_golden_file_is_reproduced(name, count):
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
    np.savez(tmp_path / "other.npz", foo=np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "objects.npz", foo=np.array([None]))
    names = ("incomplete", "other", "text", "objects", "missing")
    assert conformance.main([str(tmp_path / f"{n}.npz") for n in names]) == 1
    incomplete, other, text, objects, missing = capsys.readouterr().err.splitlines()
    assert "incomplete.npz lacks the array 'param/G/AggregationLayer.Layer.weight'." in incomplete
    assert "other.npz has nothing to compare: none of its 1 arrays has a counterpart." in other
    assert text.endswith("text.npz is not an .npz file.")
    assert objects.endswith("objects.npz is damaged, or holds other things than numbers.")
    assert missing.endswith("missing.npz cannot be read: No such file or directory.")


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        (
            "r3gan-tiny",
            "param/G/AggregationLayer.Layer.weight",
            "has shape [6, 16, 1, 1], but the other arrays need [3, 16, 1, 1].",
        ),
        ("sngan", "sngan/param/D/block1.c2.bias", "has shape [32], but the other arrays need [16]"),
        ("sngan", "sngan/in/z", "has shape [5], but the other arrays need [N, latents]."),
        ("augment", "ada/in", "need [N, C, H, W]."),
    ],
)
def test_an_array_of_a_wrong_shape_is_named(tmp_path, capsys, file, name, message):
    with np.load(GOLDEN / f"{file}.npz") as content:
        arrays = dict(content)
    changed = arrays[name]
    is_weight = "param" in name
    arrays[name] = np.concatenate([changed, changed]) if is_weight else changed[:, ..., 0].ravel()
    np.savez(tmp_path / "changed.npz", **arrays)
    paths = [str(tmp_path / "changed.npz"), str(tmp_path / "missing.npz")]
    assert conformance.main(paths) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert f"changed.npz: {name} has shape [" in first
    assert message in first
    assert "missing.npz" in second


def test_inputs_that_do_not_fit_each_other_are_named(tmp_path, capsys):
    with np.load(GOLDEN / "r3gan-tiny.npz") as file:
        arrays = dict(file)
    arrays["in/z"] = arrays["in/z"][:5]
    np.savez(tmp_path / "changed.npz", **arrays)
    assert conformance.main([str(tmp_path / "changed.npz")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the shapes of its arrays do not fit each other. Its inputs are " in line
    assert "in/z [5, 16]" in line


def test_an_output_of_a_wrong_shape_is_a_difference(tmp_path, capsys):
    with np.load(GOLDEN / "r3gan-tiny.npz") as file:
        arrays = dict(file)
    shape = list(arrays["out/D_real"].shape)
    arrays["out/D_real"] = arrays["out/D_real"][:1]
    np.savez(tmp_path / "changed.npz", **arrays)
    assert conformance.main([str(tmp_path / "changed.npz")]) == 1
    assert f"inf  out/D_real  has shape {[1, *shape[1:]]}, ours {shape}" in capsys.readouterr().out
