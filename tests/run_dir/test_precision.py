"""float32 excludes TensorFloat-32, and runs of former versions keep what they trained in."""

import dataclasses
import json
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from trainer import recipes
from trainer.config.settings import Duration
from trainer.errors import CheckpointError
from trainer.machine.replicas import create_replicas
from trainer.run_dir.directory import RunDir
from trainer.storage.stored_config import read_stored_config

PRECISIONS = {"float32": False, "tf32": True, "bfloat16": True, "float16": True}


@pytest.fixture(autouse=True)
def _restored():
    yield
    create_replicas(recipes.resolve(dict(devices="cpu")))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_float32_disables_tensor_float_32(precision):
    replicas = create_replicas(recipes.resolve(dict(devices="cpu", precision=precision)))
    assert tf.config.experimental.tensor_float_32_execution_enabled() == PRECISIONS[precision]
    assert replicas.precision == precision
    policy = "float32" if precision == "tf32" else precision
    assert keras.config.dtype_policy().compute_dtype == policy


def edit_provenance(run_dir, removed=(), **values):
    """Changes what the latest start of a run has recorded."""
    record = {**run_dir.read_provenance(), **values}
    kept = {name: value for name, value in record.items() if name not in removed}
    run_dir.provenance.write_text(json.dumps(kept))


def test_a_run_in_tf32_records_it_and_keeps_it(tiny, run):
    config = tiny(recipe="mlp", length=Duration(1, "steps"), precision="tf32")
    assert "tf32" in run(config)
    record = RunDir(Path(config.run_dir)).read_provenance()
    assert (record["precision"], record["tensor_float_32"]) == ("tf32", True)
    assert read_stored_config(config.run_dir).precision == "tf32"
    with pytest.raises(CheckpointError, match=r"other settings \(precision: tf32 -> float32\)"):
        run(config.replace(precision="float32"))


@pytest.mark.parametrize("given", ["auto", "float32"])
def test_float32_of_a_former_version_is_tf32_where_it_ran_on_gpus(tiny, run, given):
    config = tiny(recipe="mlp", length=Duration(1, "steps"), precision=given)
    run(config)
    run_dir = RunDir(Path(config.run_dir))
    assert run_dir.read_provenance()["tensor_float_32"] is False
    assert read_stored_config(config.run_dir).precision == "float32"
    edit_provenance(run_dir, removed=["tensor_float_32"])
    assert read_stored_config(config.run_dir).precision == "float32"  # it ran on the CPU
    edit_provenance(run_dir, devices=["GPU:0"])
    stored = read_stored_config(config.run_dir)
    assert stored.precision == "tf32"

    # The command with its explicit flag resumes the run too, and says that the meaning is new.
    before = run_dir.provenance.read_text(), run_dir.config.read_text()
    explicit = config.replace(precision="float32", length=Duration(2, "steps"))
    assert "TensorFloat-32 for --precision=float32" in run(explicit)
    assert read_stored_config(config.run_dir).precision == "float32"

    run_dir.provenance.write_text(before[0])
    run_dir.config.write_text(before[1])
    with pytest.raises(CheckpointError, match=r"precision: tf32 -> bfloat16"):
        run(explicit.replace(precision="bfloat16"))
    output = run(dataclasses.replace(stored, length=Duration(3, "steps")))
    assert "tf32" in output
    assert "WARNING" not in output
    assert run_dir.read_provenance()["precision"] == "tf32"
