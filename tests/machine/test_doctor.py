"""Tests of `doctor`: its report, and its explanation of GPUs that TensorFlow does not list."""

import ctypes
import io
import os
import re
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

from trainer.errors import ExitCode, TrainerError
from trainer.machine import devices, doctor, memory, nvidia
from trainer.reporting.console import Console, log_to


def loader(*missing):
    """Returns a function that loads every library except the missing ones."""

    def load(name):
        if name in missing:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return SimpleNamespace()

    return load


def explain(tmp_path, **given):
    """Returns the explanation for a machine with one GPU that TensorFlow does not list."""
    usual = dict(listed=0, missing=[], packages=tmp_path, built_for_cuda=True, environment={})
    return nvidia.explain_unlisted_gpus(given.pop("files", ["/dev/nvidia0"]), **{**usual, **given})


def test_it_shows_the_machine(trainer):
    if nvidia.device_files():
        pytest.skip("this machine has a GPU")
    answer = trainer("doctor")
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    lines = dict(re.findall(r"^(\S+) +(.+)$", answer.stdout, re.M))
    assert lines["TensorFlow"].startswith(f"{tf.__version__}, built ")
    assert lines["Keras"] == keras.__version__
    assert lines["CPU"].startswith(f"{len(os.sched_getaffinity(0))} cores")
    assert re.fullmatch(r"[\d.]+ GiB, of which [\d.]+ GiB are available.*", lines["Memory"])
    assert lines["Precision"] == "--precision=auto selects float32 on this machine"
    assert lines["GPU"] == "none listed by TensorFlow"
    assert len(re.findall(r"^Disk .* GiB free of .* in (\S+)$", answer.stdout, re.M)) == 2
    assert trainer("doctor", "--nonsense").returncode == ExitCode.USAGE


def test_a_gpu_that_tensorflow_does_not_list_is_a_failure():
    files = [f"/dev/nvidia{k}" for k in range(99)]  # more than any machine has
    stream = io.StringIO()
    log_to(Console(stream))
    with pytest.raises(TrainerError, match=r"libnvJitLink\.so\.12") as caught:
        doctor.log_report(files, loader("libnvJitLink.so.12", "libcurand.so.10"), environment={})
    assert caught.value.exit_code == ExitCode.CRASH
    assert "\n" not in str(caught.value)
    assert (
        "10 of 12 can be loaded; missing: libcurand.so.10, libnvJitLink.so.12" in stream.getvalue()
    )
    doctor.log_report([], loader(*nvidia.LIBRARIES))  # without a device no library is needed


def test_tests_and_their_processes_use_no_gpu():
    assert not tf.config.list_physical_devices("GPU")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"  # set in conftest.py and inherited


def test_a_run_without_the_gpu_that_is_there_says_so(monkeypatch, caplog):
    monkeypatch.setattr(nvidia, "device_files", lambda: ["/dev/nvidia0"])
    assert devices.select_devices("auto") == ["CPU:0"]
    assert not caplog.text  # tests hide the GPUs on purpose
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert devices.select_devices("auto") == ["CPU:0"]
    assert "Training on the CPU. /dev/nvidia0: TensorFlow lists none of 1 NVIDIA" in caplog.text


def test_the_remedy_fits_what_is_missing(tmp_path):
    folder = tmp_path / "nvjitlink" / "lib"
    folder.mkdir(parents=True)
    (folder / "libnvJitLink.so.12").write_text("")
    line = explain(tmp_path, missing=["libcudnn.so.9", "libnvJitLink.so.12", "libcuda.so.1"])
    assert line.startswith("/dev/nvidia0: TensorFlow lists none of 1 NVIDIA GPUs. ")
    assert "Not installed: libcudnn.so.9. Run pip install 'tensorflow[and-cuda]'" in line
    assert "not on the loader's search path: libnvJitLink.so.12" in line
    assert f"{tmp_path}/*/lib to LD_LIBRARY_PATH" in line
    assert "libcuda.so.1 is missing. It is part of NVIDIA's driver" in line
    assert "driver" not in explain(tmp_path, missing=["libcudnn.so.9"])
    assert "built without CUDA" in explain(tmp_path, built_for_cuda=False)
    assert "nvidia-smi" in explain(tmp_path)


@pytest.mark.parametrize(
    ("chosen", "listed", "trouble"),
    [
        (None, 2, None),
        (None, 1, "lists 1 of 2 NVIDIA GPUs"),
        ("0", 1, None),  # the other one is hidden on purpose
        ("1,0", 1, "lists 1 of 2"),
        ("", 0, "CUDA_VISIBLE_DEVICES='' hides them"),
        ("-1", 0, "CUDA_VISIBLE_DEVICES='-1' hides them"),
    ],
)
def test_devices_that_are_hidden(tmp_path, chosen, listed, trouble):
    files = ["/dev/nvidia0", "/dev/nvidia1"]
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    line = explain(tmp_path, files=files, listed=listed, environment=environment)
    assert line is None if trouble is None else trouble in line
    assert explain(tmp_path, files=[], environment=environment) is None


def test_what_the_driver_says(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    found = [str(tmp_path / name) for name in ("nvidia0", "nvidia1")]
    assert nvidia.device_files(tmp_path) == found
    version = tmp_path / "version"
    assert nvidia.driver_version(version) is None
    for text, wanted in (
        (
            "NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19",
            "535.104.05",
        ),
        ("NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build", "570.86.15"),
    ):
        version.write_text(f"NVRM version: {text}\nGCC version:  gcc version 12.3.0\n")
        assert nvidia.driver_version(version) == wanted

    def total(size, device):
        size._obj.value = 12 * 2**30 + device.value
        return 0

    def get(device, index):
        device._obj.value = index
        return 0 if index < 2 else 101  # CUDA_ERROR_INVALID_DEVICE

    driver = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=get, cuDeviceTotalMem_v2=total)
    assert nvidia.total_memory(1, lambda name: driver) == 12 * 2**30 + 1
    assert nvidia.total_memory(2, lambda name: driver) is None
    assert nvidia.total_memory(0, loader("libcuda.so.1")) is None


def test_a_gpu_is_shown_with_capability_and_memory(monkeypatch):
    gpus = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    details = dict(device_name="NVIDIA TITAN RTX", compute_capability=(7, 5))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus)
    monkeypatch.setattr(nvidia, "total_memory", lambda index, load: 24 * 2**30)
    lines = dict(doctor._gpus(gpus, ["/dev/nvidia0"], [], ctypes.CDLL))
    assert lines["GPU:0"] == "NVIDIA TITAN RTX, compute capability 7.5, 24.0 GiB"
    assert lines["Libraries"] == "12 of 12 can be loaded"
    for capability, precision in (((6, 1), "float32"), ((7, 5), "float16"), ((8, 0), "bfloat16")):
        details["compute_capability"] = capability
        assert devices.auto_precision() == precision
    details["compute_capability"] = (8, 0)
    assert devices.auto_precision() == "bfloat16"


def test_a_container_limit_is_shown(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMIT", limit)
    for text, end in (("max\n", "available"), (f"{2**31}\n", "limited to 2.0 GiB")):
        limit.write_text(text)
        assert doctor._memory().endswith(end)
    assert memory.available_bytes() <= 2**31  # checks of data sets use the same limit


def test_without_tensorflow_it_says_so(trainer, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('libbroken.so is missing')\n")
    answer = trainer("doctor")  # runs in tmp_path, whose modules come first
    assert answer.returncode == ExitCode.CRASH
    assert "cannot be imported (libbroken.so is missing): pip install" in answer.stderr
    assert answer.stderr.count("\n") == 1
