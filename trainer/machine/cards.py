"""Which versions of NVIDIA's driver and of cuDNN a GPU needs, without TensorFlow.

docs/gpus.md explains the numbers. docker/capabilities.py reads them from the libraries.
"""

import dataclasses

Version = tuple[int, ...]

OLDEST_CAPABILITY = (6, 0)
OLDEST_CUDNN = (9, 3, 0)  # TensorFlow 2.21 is compiled for it
FIRST_CUDNN_WITHOUT_OLD_CARDS = (9, 11, 0)  # it has no code for compute capability below 7.5
CUDNN_PINS = "'nvidia-cudnn-cu12>=9.3,<9.11'"
# From which compute capability on which CUDA version, and the driver that brought it, are needed.
# From 9.0 on some kernels of TensorFlow exist only as PTX of CUDA 12.5.
DRIVERS: tuple[tuple[Version, Version, int], ...] = (
    ((10, 0), (12, 8), 570),
    ((9, 0), (12, 5), 555),
    ((6, 0), (12, 0), 525),
)
FIRST_COMPILED_BY_DRIVER = (10, 0)  # TensorFlow has only PTX for these cards


@dataclasses.dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
      device: its name in TensorFlow, such as "GPU:0".
      name: the name of the product.
      capability: its compute capability, such as (7, 5); (0, 0) if it is unknown.
    """

    device: str
    name: str
    capability: Version

    def __str__(self) -> str:
        return f"{self.device} ({self.name}, compute capability {dotted(self.capability)})"


def dotted(version: Version) -> str:
    """Returns a version as text, such as "9.10.2"."""
    return ".".join(map(str, version))


def explain_versions(card: Card, cudnn: Version | None, cuda: Version | None) -> list[str]:
    """Returns what is wrong with the versions for a GPU, each with the remedy.

    Args:
      card: the GPU.
      cudnn: version of cuDNN; None if it is unknown.
      cuda: newest CUDA version that the driver supports; None if it is unknown.
    """
    if not any(card.capability):
        return []
    if card.capability < OLDEST_CAPABILITY:
        return [
            f"{card}: TensorFlow 2.21 has no code for compute capability below "
            f"{dotted(OLDEST_CAPABILITY)}. Use another GPU, or --devices=cpu."
        ]
    problems = []
    if cudnn is not None and cudnn < OLDEST_CUDNN:
        problems.append(
            f"{card}: cuDNN {dotted(cudnn)} is too old for TensorFlow 2.21. Run pip install "
            f"{CUDNN_PINS}, and remove older versions from LD_LIBRARY_PATH."
        )
    if cudnn is not None and cudnn >= FIRST_CUDNN_WITHOUT_OLD_CARDS and card.capability < (7, 5):
        problems.append(
            f"{card}: cuDNN {dotted(cudnn)} has no code for this GPU. Run pip install {CUDNN_PINS}."
        )
    needed, driver = next(
        (needed, driver) for first, needed, driver in DRIVERS if card.capability >= first
    )
    if cuda is not None and cuda < needed:
        problems.append(
            f"{card}: the driver supports CUDA {dotted(cuda)}, but this GPU needs CUDA "
            f"{dotted(needed)}. Install driver {driver} or newer."
        )
    return problems
