"""Reads from the pinned GPU packages for which compute capabilities they hold code.

    python docker/capabilities.py docker/requirements-gpu.txt

The pinned wheels are downloaded to a temporary folder (about 3 GB; --wheels=DIR keeps them). The
exit code is 1 if a library has no code for a capability that docs/gpus.md promises, or needs a
newer driver than stated there.

Device code lies in a library as "fat binaries". Each has a header

    magic 0xBA55ED50 (u32), version 1 (u16), size of the header 16 (u16), size of what follows (u64)

and, after it, entries with a header of their own, of which these fields matter:

    0: kind (u16), 1 for PTX and 2 for machine code      4: size of the header (u32)
    8: size of what follows (u64)                       24: version of PTX, minor and major (u16)
    28: compute capability, for example 75 (u32)

Machine code runs on its capability and on later ones of the same major version. PTX is compiled
by the driver, for its capability and all later ones, if the driver knows its version. Most fat
binaries lie in the section .nv_fatbin, and those of TensorFlow's generated kernels in .rodata.
Therefore the whole file is searched.
"""

import argparse
import collections
import dataclasses
import mmap
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

# NVIDIA's packages that TensorFlow opens and that hold device code, and TensorFlow itself.
PACKAGES = (
    "tensorflow",
    "nvidia-cublas-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cufft-cu12",
    "nvidia-cusolver-cu12",
    "nvidia-cusparse-cu12",
    "nvidia-nccl-cu12",
)
# Wrappers of other libraries, which TensorFlow does not open.
NOT_OPENED = ("libcufftw.", "libcusolverMg.")
# What docs/gpus.md promises: capabilities, as major and minor version in one number, and the
# newest PTX that the oldest driver of the table compiles (PTX 8.0 came with CUDA 12.0 and driver
# 525, 8.5 with 12.5 and 555, 8.7 with 12.8 and 570).
PROMISED = {
    60: 80, 61: 80, 70: 80, 75: 80, 80: 80, 86: 80, 89: 80, 90: 85, 100: 87, 120: 87,
}  # fmt: skip
MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
HEADER, ENTRY = struct.Struct("<8xQ"), struct.Struct("<HHIQ8xHHI")
PTX, CODE = 1, 2


@dataclasses.dataclass(frozen=True)
class Entry:
    """One piece of device code.

    Attributes:
      kind: PTX or CODE.
      capability: compute capability, for example 75.
      ptx: version of PTX in tenths, for example 85; of no meaning for machine code.
    """

    kind: int
    capability: int
    ptx: int = 0

    def runs_on(self, capability: int) -> bool:
        """Returns whether a card of this capability can run the code."""
        if self.kind == PTX:
            return self.capability <= capability
        return self.capability <= capability < self.capability // 10 * 10 + 10


FatBinary = frozenset[Entry]


def fat_binaries(content: bytes | mmap.mmap) -> Iterator[FatBinary]:
    """Yields the entries of each fat binary in the content of a file."""
    start = content.find(MAGIC)
    while start >= 0:
        entries = frozenset(_entries(content, start))
        if entries:
            yield entries
        start = content.find(MAGIC, start + len(MAGIC))


def _entries(content: bytes | mmap.mmap, start: int) -> Iterator[Entry]:
    if start + HEADER.size > len(content):
        return
    (size,) = HEADER.unpack_from(content, start)
    place = start + HEADER.size
    end = min(place + size, len(content))
    while place + ENTRY.size <= end:
        kind, _, header_size, payload, minor, major, capability = ENTRY.unpack_from(content, place)
        if kind in (PTX, CODE):
            yield Entry(kind, capability, 10 * major + minor if kind == PTX else 0)
        if not header_size:  # padding
            return
        place += header_size + payload


@dataclasses.dataclass
class Library:
    """A library with device code.

    Attributes:
      name: its file name.
      counts: number of fat binaries by their entries.
    """

    name: str
    counts: collections.Counter[FatBinary]

    def support(self, capability: int) -> collections.Counter[int]:
        """Returns how many fat binaries serve a card, by the PTX version that they need.

        The version is 0 for those that have machine code for the card.
        """
        served: collections.Counter[int] = collections.Counter()
        for entries, count in self.counts.items():
            usable = [entry for entry in entries if entry.runs_on(capability)]
            if usable:
                served[min(entry.ptx for entry in usable)] += count
        return served

    def problem(self, capability: int, newest_ptx: int) -> str | None:
        """Returns why a card is not served; None if it is.

        Libraries of NVIDIA choose among kernels, so that some need not fit the card. TensorFlow
        has one kernel for each purpose, so the driver must be able to compile all of them.
        """
        served = self.support(capability)
        if not served:
            return f"{self.name} has no code for compute capability {capability / 10}."
        if self.name.startswith("libtensorflow") and max(served) > newest_ptx:
            return (
                f"{self.name} needs PTX {max(served) / 10} on compute capability "
                f"{capability / 10}, but the driver that docs/gpus.md asks for compiles at most "
                f"{newest_ptx / 10}."
            )
        return None


def libraries(wheel: Path) -> Iterator[Library]:
    """Yields the libraries in a wheel that hold device code."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = Path(info.filename).name
            if not re.search(r"\.so(\.\d+)*$", name) or name.startswith(NOT_OPENED):
                continue
            if not info.file_size:  # an empty file cannot be mapped
                continue
            with tempfile.TemporaryFile() as file:
                with archive.open(info) as source:
                    while block := source.read(1 << 24):
                        file.write(block)
                file.flush()
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    counts = collections.Counter(fat_binaries(content))
            if counts:
                yield Library(name, counts)


def pins(requirements: str, packages: Sequence[str] = PACKAGES) -> str:
    """Returns the lines of a requirements file, with their hashes, of the given packages."""
    blocks = re.findall(r"^\S.*(?:\n +.*)*", requirements, re.M)
    return "\n".join(block for block in blocks if block.partition("==")[0] in packages) + "\n"


def download(requirements: Path, folder: Path) -> None:
    """Downloads the pinned wheels to a folder, if they are not there yet."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(pins(requirements.read_text(encoding="utf-8")))
        file.flush()
        command = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run(
            [sys.executable, "-m", *command, "--require-hashes", "-r", file.name, "-d", folder],
            check=True,
        )


def lost(found: Iterable[Library], promised: Mapping[int, int] = PROMISED) -> list[str]:
    """Returns a sentence for each promised capability that a library does not serve."""
    problems = [library.problem(*pair) for library in found for pair in promised.items()]
    return [problem for problem in problems if problem]


def table(found: Iterable[Library], promised: Iterable[int] = PROMISED) -> str:
    """Returns the numbers of fat binaries by library and capability, as "code" or PTX version."""
    lines = []
    for library in found:
        lines.append(f"{library.name}, {library.counts.total():,} fat binaries")
        for capability in promised:
            parts = [
                f"{count:,} with PTX {version / 10}" if version else f"{count:,} with code"
                for version, count in sorted(library.support(capability).items())
            ]
            lines.append(f"  {capability / 10:4}  {', '.join(parts) or 'none'}")
    return "\n".join(lines)


def main() -> None:
    """Prints a table of libraries and capabilities; exits with 1 if one is lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("requirements", type=Path, help="requirements file with hashes")
    parser.add_argument("--wheels", type=Path, help="folder that keeps the downloaded wheels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.wheels or Path(scratch)
        download(options.requirements, folder)
        found = [library for wheel in sorted(folder.glob("*.whl")) for library in libraries(wheel)]
    print(table(found))
    if problems := lost(found):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
