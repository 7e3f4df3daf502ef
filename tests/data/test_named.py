"""Tests that one file adds a named data set, as CONTRIBUTING.md describes."""

import dataclasses
import gzip
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer import recipes
from trainer.data import named, sources
from trainer.data.named.source import Source
from trainer.errors import DataError, ExitCode

ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import json, sys, trainer
from trainer import recipes
from trainer.data import sources

data = sources.load(recipes.resolve(dict(dataset="kmnist", data_dir="data", batch_size=4)))
print(json.dumps({
    "package": trainer.__file__,
    "shape": data.images.shape,
    "sum": int(data.images.sum()),
    "labels": data.labels.tolist(),
    "class_names": data.class_names,
    "heavy": sorted({"tensorflow", "keras"} & set(sys.modules)),
}))
"""


def documented_file():
    """Returns the example of a data set file and its path in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(r"^## Adding a data set\n(.*?)^## ", text, re.M | re.S)[1]
    (path,) = re.findall(r"`(trainer/data/named/kmnist\.py)`", section)
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    return path, code


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def python(tmp_path):
    """Returns a function that runs Python with a copy of the package that has the new file."""
    shutil.copytree(
        ROOT / "trainer", tmp_path / "trainer", ignore=shutil.ignore_patterns("__pycache__")
    )
    path, code = documented_file()
    (tmp_path / path).write_text(code, encoding="utf-8")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "TRAINER_DATA_DIR": ""},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_a_new_file_is_a_data_set(tmp_path, python):
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    write_idx(tmp_path / "data" / "kmnist" / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "data" / "kmnist" / "train-labels-idx1-ubyte.gz", labels)
    answer = python("-c", LOAD)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert Path(found["package"]).is_relative_to(tmp_path)
    assert found["shape"] == [12, 28, 28, 1]
    assert found["sum"] == images.sum()
    assert found["labels"] == labels.tolist()
    assert found["class_names"][:2] == ["o", "ki"]
    assert found["heavy"] == []


def test_missing_files_of_a_new_data_set_are_an_error_with_a_remedy(tmp_path, python):
    (tmp_path / "data").mkdir()
    answer = python("-m", "trainer", "train", "--dataset=kmnist", "--data_dir=data")
    assert answer.returncode == ExitCode.DATA, answer.stderr
    assert answer.stderr.count("\n") == 1
    assert "--dataset=kmnist was not found. Put kmnist/ with train-" in answer.stderr
    assert "in --data_dir=data. The files are published at http://codh" in answer.stderr


def test_without_data_dir_files_in_the_working_directory_are_not_used(monkeypatch):
    def read(folder, splits):
        raise AssertionError("read")

    source = dataclasses.replace(sources.SOURCES["mnist"], read=read, keras_name="")
    monkeypatch.setattr(sources, "SOURCES", {"mnist": source})
    with pytest.raises(DataError, match="in a folder and set --data_dir to it"):
        sources.load(recipes.resolve(dict(dataset="mnist", data_dir="")))


def test_every_data_set_is_found_and_other_modules_are_not():
    names = list(named.find_sources())
    assert names == sorted(names)
    assert {"cifar10", "digits", "fashion_mnist", "mnist"} <= set(names)
    assert not {"source", "mnist_files"} & set(names)
    for name, source in sources.SOURCES.items():
        assert isinstance(source, Source), name
        assert len(set(source.class_names)) == len(source.class_names) > 0, name
