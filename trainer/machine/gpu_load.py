"""Memory in use and load of the GPUs, read through the optional package nvidia-ml-py."""

import contextlib
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class GpuLoad:
    """The load of a GPU.

    Attributes:
      memory: memory in use in bytes, by all processes.
      utilisation: share of the last second in which the GPU computed, 0 to 1.
    """

    memory: int
    utilisation: float


def read() -> list[GpuLoad]:
    """Returns the load of each GPU; empty without GPUs, a driver or the package."""
    try:
        import pynvml  # an extra of this package
    except ImportError:
        return []
    nvml: Any = pynvml
    found = []
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlInit()
        for index in range(nvml.nvmlDeviceGetCount()):
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(device).used
            busy = nvml.nvmlDeviceGetUtilizationRates(device).gpu
            found.append(GpuLoad(int(memory), busy / 100))
    return found
