"""Tests of `doctor`: its report, and its explanation of GPUs that TensorFlow does not list."""

import dataclasses
import io
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

from trainer.errors import ExitCode, TrainerError
from trainer.machine import devices, doctor, memory, nvidia, self_test
from trainer.reporting.console import Console, log_to


def loader(*missing, **needed):
    """Returns a function that loads every library except the missing ones.

    `needed` names files that are missing and that a library needs.
    """

    def load(name):
        absent = name if name in missing else needed.get(name.partition(".")[0])
        if absent:
            raise OSError(f"{absent}: cannot open shared object file: No such file or directory")
        return SimpleNamespace()

    return load


def explain(tmp_path, **given):
    """Returns the explanation for a machine with one GPU that TensorFlow does not list."""
    usual = dict(listed=0, missing=[], packages=tmp_path, built_for_cuda=True, environment={})
    return nvidia.explain_unlisted_gpus(given.pop("files", ["/dev/nvidia0"]), **{**usual, **given})


def run_doctor(folder, *flags):
    """Runs the command in a process that imports TensorFlow itself."""
    command = [sys.executable, "-m", "trainer", "doctor", *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_it_shows_the_machine(tmp_path):
    if nvidia.device_files():
        pytest.skip("this machine has a GPU")
    answer = run_doctor(tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    lines = dict(re.findall(r"^(\S+) +(.+)$", answer.stdout, re.M))
    assert lines["TensorFlow"].startswith(f"{tf.__version__}, built ")
    assert lines["Keras"] == keras.__version__
    assert lines["CPU"].startswith(f"{len(os.sched_getaffinity(0))} cores")
    assert re.fullmatch(r"[\d.]+ GiB, of which [\d.]+ GiB are available.*", lines["Memory"])
    assert lines["Precision"] == "--precision=auto selects float32 on this machine"
    assert lines["GPU"] == "none listed by TensorFlow"
    assert re.fullmatch(
        "CPU:0: convolution passed, batch norm passed, matrix product passed in float32, forward "
        r"and backward, in [\d.]+ s",
        lines["Self-test"],
    )
    assert len(re.findall(r"^Disk .* GiB free of .* in (\S+)$", answer.stdout, re.M)) == 2
    assert run_doctor(tmp_path, "--nonsense").returncode == ExitCode.USAGE


def test_a_gpu_that_tensorflow_does_not_list_is_a_failure():
    files = [f"/dev/nvidia{k}" for k in range(99)]  # more than any machine has
    stream = io.StringIO()
    log_to(Console(stream))
    load = loader("libcufft.so.11", "libcupti.so.12", libcusolver="libnvJitLink.so.12")
    with pytest.raises(TrainerError, match=r"libnvJitLink\.so\.12") as caught:
        doctor.log_report(files, load, environment={})
    assert caught.value.exit_code == ExitCode.CRASH
    assert "\n" not in str(caught.value)
    assert (
        "6 of 8 can be loaded; missing: libcufft.so.11, libnvJitLink.so.12; libcupti.so.12 is "
        "missing, which --profile needs\n" in stream.getvalue()
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
    assert "'nvidia-cudnn-cu12>=9.3,<9.11'" in line
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
    assert nvidia.driver_version(version, loader("libnvidia-ml.so.1")) is None
    for text, wanted in (
        (
            "NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19",
            "535.104.05",
        ),
        ("NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build", "570.86.15"),
    ):
        version.write_text(f"NVRM version: {text}\nGCC version:  gcc version 12.3.0\n")
        assert nvidia.driver_version(version, loader("libnvidia-ml.so.1")) == wanted

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


def software(cudnn=91002, cuda=12090, driver=b"576.02"):
    """Returns a function that loads libraries with these versions."""

    def cuda_version(version):
        version._obj.value = cuda
        return 0

    def management_version(text, size):
        text.value = driver
        return 0

    libraries = {
        "libcudnn.so.9": SimpleNamespace(cudnnGetVersion=lambda: cudnn),
        "libcuda.so.1": SimpleNamespace(cuDriverGetVersion=cuda_version, cuInit=lambda flags: 100),
        "libnvidia-ml.so.1": SimpleNamespace(
            nvmlInit_v2=lambda: 0, nvmlSystemGetDriverVersion=management_version
        ),
    }
    return lambda name: libraries.get(name, SimpleNamespace())


def test_under_wsl_the_driver_is_found_without_its_files(tmp_path, monkeypatch):
    (tmp_path / "dxg").touch()
    monkeypatch.setattr(nvidia, "WSL_DRIVER", tmp_path / "libcuda.so.1")
    assert not nvidia.device_files(tmp_path)  # a GPU of another maker
    (tmp_path / "libcuda.so.1").touch()
    assert nvidia.device_files(tmp_path) == [str(tmp_path / "dxg")]
    assert nvidia.driver_version(tmp_path / "version", software()) == "576.02"
    assert explain(tmp_path, files=[str(tmp_path / "dxg")], listed=2) is None  # it has two GPUs


@pytest.mark.parametrize(
    ("capability", "cudnn", "cuda", "problem"),
    [
        ((7, 0), 91002, 12000, None),
        ((6, 1), 92800, 12090, "cuDNN 9.28.0 has no code for this GPU. Run pip install 'nvidia-cu"),
        ((7, 5), 92800, 12000, None),
        ((8, 6), 80907, 12000, "cuDNN 8.9.7 is too old"),
        ((9, 0), 91002, 12050, None),
        (
            (9, 0),
            91002,
            12040,
            "supports CUDA 12.4, but this GPU needs CUDA 12.5. Install",
        ),
        ((12, 0), 91002, 12080, None),
        ((12, 0), 91002, 12050, "needs CUDA 12.8. Install driver 570 or newer"),
        ((8, 9), 91002, 11080, "needs CUDA 12.0. Install driver 525 or newer"),
        ((5, 2), 91002, 12090, "no code for compute capability below 6.0. Use another GPU"),
    ],
)
def test_versions_that_do_not_suit_a_gpu_are_named(one_gpu, capability, cudnn, cuda, problem):
    one_gpu.update(device_name="NVIDIA TITAN", compute_capability=capability)
    load = software(cudnn, cuda)
    if problem is None:
        doctor.log_report(["/dev/nvidia0"], load, environment={})
        return
    with pytest.raises(TrainerError) as caught:
        doctor.log_report(["/dev/nvidia0"], load, environment={})
    capability = ".".join(map(str, capability))
    assert str(caught.value).startswith(f"GPU:0 (NVIDIA TITAN, compute capability {capability}): ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def one_gpu(monkeypatch):
    """Lets TensorFlow list a GPU, and the self-test run on the CPU; returns the GPU's details."""
    details = dict(device_name="NVIDIA TITAN V", compute_capability=(7, 0))
    gpus = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    of_kind = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: gpus if kind == "GPU" else of_kind(kind)
    )
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus)
    experimental = tf.config.experimental
    monkeypatch.setattr(experimental, "get_device_details", lambda gpu: details)
    monkeypatch.setattr(experimental, "set_memory_growth", lambda gpu, enable: None)
    run = self_test.run
    monkeypatch.setattr(self_test, "run", lambda device, precision: run("CPU:0", precision))
    return details


@pytest.mark.parametrize(
    ("name", "error", "problem"),
    [
        (
            "convolution",
            tf.errors.InternalError(None, None, "no kernel image is available.\nMore"),
            "convolution in float16 (cuDNN) failed: no kernel image is available. Run pip install "
            "'nvidia-cudnn-cu12>=9.3,<9.11'",
        ),
        (
            "matrix product",
            tf.errors.InternalError(None, None, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
            "matrix product in float16 (cuBLAS) failed: CUDA_ERROR_UNSUPPORTED_PTX_VERSION. "
            "Install a newer driver",
        ),
        (
            "batch norm",
            tf.errors.ResourceExhaustedError(None, None, "failed to allocate"),
            "batch norm in float16 (cuDNN) found no free memory. Run nvidia-smi",
        ),
        ("matrix product", None, "matrix product in float16 (cuBLAS) gives wrong numbers (error "),
    ],
)
def test_an_operation_that_fails_is_named_with_gpu_library_and_remedy(
    one_gpu, monkeypatch, name, error, problem
):
    operation = self_test.OPERATIONS[name]

    def compute(*inputs):
        if inputs[0].dtype != tf.float16:  # what the CPU computes to compare
            return operation.compute(*inputs)
        if error:
            raise error
        return 1.5 * operation.compute(*inputs)

    broken = dataclasses.replace(operation, compute=compute)
    monkeypatch.setitem(self_test.OPERATIONS, name, broken)
    stream = io.StringIO()
    log_to(Console(stream))
    with pytest.raises(TrainerError) as caught:
        doctor.log_report(["/dev/nvidia0"], software(), environment={})
    message = f"GPU:0 (NVIDIA TITAN V, compute capability 7.0): {problem}"
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert f"{name} failed" in stream.getvalue()
    assert stream.getvalue().count(" passed") == 2


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_the_self_test_passes_on_the_cpu_in_every_format(precision):
    for result in self_test.run("CPU:0", precision):
        assert not result.problem
        assert (result.error > 0) == (precision in ("bfloat16", "float16"))


def test_a_gpu_is_shown_with_capability_and_memory(monkeypatch):
    gpus = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    details = dict(device_name="NVIDIA TITAN RTX", compute_capability=(7, 5))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus)
    monkeypatch.setattr(nvidia, "total_memory", lambda index, load: 24 * 2**30)
    lines = dict(doctor._gpus(gpus, ["/dev/nvidia0"], [], software()))
    assert lines["GPU:0"] == "NVIDIA TITAN RTX, compute capability 7.5, 24.0 GiB"
    assert lines["Libraries"] == "8 of 8 can be loaded"
    assert lines["Driver"].endswith(", for CUDA up to 12.9")
    assert lines["cuDNN"] == "9.10.2"
    for capability, precision in (((6, 1), "float32"), ((7, 5), "float16"), ((8, 0), "bfloat16")):
        details["compute_capability"] = capability
        assert devices.auto_precision() == precision
    details["compute_capability"] = (8, 0)
    assert devices.auto_precision() == "bfloat16"


def test_a_container_limit_is_shown(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"  # of version 2
    monkeypatch.setattr(memory, "CGROUP_ROOT", tmp_path)
    for text, end in (("max\n", "available"), (f"{2**31}\n", "limited to 2.0 GiB")):
        limit.write_text(text)
        assert doctor._memory().endswith(end)
    assert memory.available_bytes() <= 2**31  # checks of data sets use the same limit


def test_without_tensorflow_it_says_so(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('libbroken.so is missing')\n")
    answer = run_doctor(tmp_path)  # the modules of its folder come first
    assert answer.returncode == ExitCode.CRASH
    assert "cannot be imported (libbroken.so is missing): pip install" in answer.stderr
    assert answer.stderr.count("\n") == 1
