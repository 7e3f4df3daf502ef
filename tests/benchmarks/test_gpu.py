"""Every part of the GPU benchmark, tiny and on the CPU, so that none fails on a card for a typo."""

import dataclasses
import json
import os

import pytest

from benchmarks import gpu, gpu_runs, harness
from benchmarks.harness import Measured
from trainer import recipes
from trainer.errors import TrainerError, UsageError
from trainer.machine import doctor

TINY = gpu.Options(
    devices="cpu",
    recipes=("mlp",),
    precisions=("float32", "bfloat16"),
    batches=(8,),
    steps=8,
    repeat_steps=160,
    xla=("off",),
    settings=gpu.TINY,
    call=lambda name, **options: getattr(gpu_runs, name)(**options),
)


def rows_of(part, **changes):
    return list(gpu.PARTS[part](dataclasses.replace(TINY, **changes)))


def test_devices_are_those_of_doctor(monkeypatch):
    rows = rows_of("devices")
    assert {"TensorFlow", "Driver", "Libraries", "Self-test"} <= {row["what"] for row in rows}
    assert all(row.get("ok", True) for row in rows)

    def fail(files):
        raise TrainerError("GPU:0 has no cuDNN")

    monkeypatch.setattr(doctor, "log_report", fail)
    assert rows_of("devices") == [{"what": "problem", "value": "GPU:0 has no cuDNN", "ok": False}]


def test_kernels_run_in_every_format():
    rows = rows_of("kernels", precisions=gpu.PRECISIONS)
    assert [row["precision"] for row in rows] == [p for p in gpu.PRECISIONS for _ in range(3)]
    assert {row["operation"] for row in rows} == {"convolution", "batch norm", "matrix product"}
    assert all(row["ok"] for row in rows)


def test_speed_is_measured_in_every_case():
    (row,) = rows_of("speed", precisions=("bfloat16",))
    assert (row["recipe"], row["precision"]) == ("mlp", "bfloat16")
    assert row["ms_per_step"] == pytest.approx(8000 / row["images_per_sec"])
    assert row["total_secs"] > 0


def test_a_case_that_fails_is_reported_and_the_next_one_runs():
    def call(name, **options):
        if options["precision"] == "float32":
            raise RuntimeError("out of luck")
        return {"ms_per_step": 1.0}

    first, second = rows_of("speed", call=call)
    assert [row["precision"] for row in (first, second)] == ["float32", "bfloat16"]
    assert (first["ok"], first["problem"]) == (False, "out of luck")
    assert second["ms_per_step"] == 1.0


def test_losses_are_compared_with_the_cpu_and_with_one_device():
    known = {}

    def call(name, **options):
        """Runs equal calls only once."""
        key = options["devices"], repr(options)
        if key not in known:
            known[key] = TINY.call(name, **options)
        return known[key]

    (same,) = rows_of("same", call=call)
    assert same == {"recipe": "mlp", "first_step": 0.0, "largest": 0.0, "ok": True}
    (two,) = rows_of("two", call=call)
    assert two["ok"]
    assert two["largest"] < gpu.TWO_TOLERANCE
    assert [devices for devices, _ in known] == ["cpu", "cpu:2"]


def test_losses_that_differ_are_not_ok():
    def call(name, devices, **options):
        return [
            {"d_loss": 1.0, "g_loss": 0.5},
            {"d_loss": 1.0, "g_loss": 0.5 + (devices == "gpu:0")},
        ]

    (row,) = rows_of("same", call=call, devices="gpu:0")
    assert row == {"recipe": "mlp", "first_step": 0.0, "largest": 1.0, "ok": False}


def test_deterministic_runs_end_with_the_same_bits_also_after_a_kill():
    (row,) = rows_of("repeat")
    assert row["ok"], row
    assert len(row["first"]) == 16


def test_the_message_about_memory_is_that_of_the_trainer(monkeypatch):
    def fit(run_dir, logical_mib, steps, **settings):
        recipes.resolve(settings)  # the settings exist
        return []

    monkeypatch.setattr(gpu_runs, "train", fit)
    (fits,) = rows_of("memory")
    assert fits == {"message": "none: the batch fits", "ok": True}
    assert not rows_of("memory", devices="gpu:0")[0]["ok"]
    message = "The device's memory is too small for 8 images at once."

    def fail(*args, **settings):
        raise UsageError(message)

    monkeypatch.setattr(gpu_runs, "train", fail)
    assert rows_of("memory", devices="gpu:0") == [{"message": message, "ok": True}]


def test_the_trainer_is_measured_beside_eager_and_compiled_pytorch(monkeypatch):
    def measure(cases, **_):
        return {
            case.name: Measured((2.0,), {"batch": case.options["batch_size"]}) for case in cases
        }

    monkeypatch.setattr(harness, "measure", measure)
    rows = rows_of("torch")
    assert [row["recipe"] for row in rows] == ["dcgan", "dcgan", *["dcgan-conditional"] * 2]
    assert all(row["x_torch"] == row["x_compiled"] == 1.0 for row in rows)


def test_variables_are_set_for_the_process_that_is_measured(monkeypatch):
    names = [variable.partition("=")[0] for variable in gpu.VARIABLES]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    seen = []

    def call(function, **settings):
        seen.append({name: os.environ[name] for name in names if name in os.environ})
        return {"ms_per_step": 1.0}

    rows = rows_of("environment", call=call, recipes=("dcgan",))
    assert seen == [{}, {names[0]: "1"}, {names[1]: "gpu_private"}]
    assert [row["variable"] for row in rows] == ["", *gpu.VARIABLES]


def test_the_command_runs_the_parts_writes_their_rows_and_fails_if_one_does(
    monkeypatch, tmp_path, capsys
):
    out = tmp_path / "gpu.json"

    def fail(options):
        yield {"what": "first"}
        raise RuntimeError("the process died")

    monkeypatch.setattr(gpu, "PARTS", {"devices": fail, "same": lambda _: iter([{"ok": True}])})
    assert gpu.main(["same", "--tiny", "--devices=cpu", f"--out={out}"]) == 0
    assert gpu.main(["--tiny", "--devices=cpu", f"--out={out}"]) == 1
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == ["same", "devices"]
    assert parts["same"]["rows"] == [{"ok": True}]
    assert parts["devices"]["devices"] == "cpu"
    problem = {"ok": False, "problem": "the process died"}
    assert parts["devices"]["rows"] == [{"what": "first"}, problem]
    assert "the process died" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["kernel"])
    assert "unknown part 'kernel'" in capsys.readouterr().err


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="gpu_runs:train: UsageError: --devices='nowhere'"):
        harness.alone("benchmarks.gpu_runs:train", run_dir="unused", devices="nowhere")
