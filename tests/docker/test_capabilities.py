"""The check that reads from GPU libraries which compute capabilities they hold code for."""

import importlib.util
import random
import struct
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_tool():
    path = ROOT / "docker" / "capabilities.py"
    spec = importlib.util.spec_from_file_location("capabilities", path)
    module = sys.modules["capabilities"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def code(capability):
    return entry(tool.CODE, capability)


def ptx(capability, version):
    return entry(tool.PTX, capability, version)


def entry(kind, capability, version=0):
    payload = random.Random(capability).randbytes(40)
    header = struct.pack(
        "<HHIQIIHHI", kind, 0x101, 64, len(payload), 0, 0, version % 10, version // 10, capability
    )
    return header.ljust(64, b"\0") + payload


def fat_binary(*entries):
    content = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content


def wheel(path, **libraries):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/notes.txt", fat_binary(code(60)))
        archive.writestr("package/libempty.so", b"")
        for name, content in libraries.items():
            archive.writestr(f"package/lib/lib{name}.so.1", b"\x7fELF" + content + b"\0" * 20)
    return path


def test_code_runs_on_later_cards_of_its_generation_and_ptx_on_all_later_cards(tmp_path):
    content = fat_binary(code(60), code(75), ptx(80, 85)) + b"noise" * 3 + fat_binary(code(60))
    (library,) = tool.libraries(wheel(tmp_path / "a.whl", one=content, plain=b"no device code"))
    assert library.name == "libone.so.1"
    served = {k: dict(library.support(k)) for k in (52, 60, 61, 70, 75, 80, 90)}
    assert served == {
        52: {}, 60: {0: 2}, 61: {0: 2}, 70: {}, 75: {0: 1}, 80: {85: 1}, 90: {85: 1},
    }  # fmt: skip
    lines = tool.table([library], [60, 70, 90]).splitlines()
    assert lines[0] == "libone.so.1, 2 fat binaries"
    texts = [line.split(maxsplit=1) for line in lines[1:]]
    assert texts == [["6.0", "2 with code"], ["7.0", "none"], ["9.0", "1 with PTX 8.5"]]


def test_lost_capabilities_and_too_new_ptx_are_named(tmp_path):
    everything = fat_binary(*map(code, (60, 70, 75, 80, 90)), ptx(90, 85))
    later = fat_binary(*map(code, (75, 80, 90, 100, 120)))
    generated = everything + fat_binary(*map(code, (60, 70, 80)), ptx(90, 88))
    archive = wheel(tmp_path / "a.whl", cudnn_ops=later, tensorflow_cc=generated, cufftw=later)
    problems = tool.lost(tool.libraries(archive))
    assert problems[0] == "libcudnn_ops.so.1 has no code for compute capability 6.0."
    assert [problem.split()[-1] for problem in problems[:3]] == ["6.0.", "6.1.", "7.0."]
    assert [problem.partition(", but")[0] for problem in problems[3:]] == [
        f"libtensorflow_cc.so.1 needs PTX 8.8 on compute capability {k}"
        for k in ("9.0", "10.0", "12.0")
    ]
    complete = wheel(tmp_path / "b.whl", tensorflow_cc=everything, tensorflow_framework=everything)
    assert not tool.lost(tool.libraries(complete))


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_a_truncated_file_is_no_error(cut):
    content = fat_binary(code(60), code(70))
    list(tool.fat_binaries(content[:cut]))
    empty = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 2**63)
    assert not list(tool.fat_binaries(empty + b"\0" * 200))


def test_the_pinned_packages_are_checked():
    text = (ROOT / "docker" / "requirements-gpu.txt").read_text()
    pinned = tool.pins(text)
    names = [line.partition("==")[0] for line in pinned.splitlines() if "==" in line]
    assert sorted(names) == sorted(tool.PACKAGES)
    assert pinned.count("--hash=") >= len(names)
    document = (ROOT / "docs" / "gpus.md").read_text()
    for capability in tool.PROMISED:
        assert f"| {capability / 10} " in document
