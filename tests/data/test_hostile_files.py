"""Damaged and hostile files end with one line and exit code 65, and take little memory."""

import bz2
import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer import recipes
from trainer.data import sources
from trainer.data.file_stores import Archive
from trainer.data.form import FormOptions
from trainer.data.parquet import Parquets
from trainer.data.preparing import prepare
from trainer.data.preparing.part import Part, Settings
from trainer.data.tars import Tars
from trainer.errors import DataError, ExitCode, TrainerError
from trainer.files import array_cache
from trainer.machine import memory
from trainer.machine.memory import Budget

GIB = 1 << 30


# Files that are small and would take gigabytes.


def png(width, height, rows=b""):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def zeros(count, method):
    """Compresses `count` zeros piece by piece."""
    piece = bytes(1 << 20)
    return b"".join(method.compress(piece) for _ in range(count >> 20)) + method.flush()


def zip_entry(packed, unpacked, method=zipfile.ZIP_DEFLATED, name=b"a.png", crc=0):
    """Builds an archive of one file, whose entry states any size."""
    sizes = struct.pack("<III", crc, len(packed), unpacked)
    local = struct.pack("<IHHHHH", 0x04034B50, 20, 0, method, 0, 33) + sizes
    local += struct.pack("<HH", len(name), 0) + name + packed
    central = struct.pack("<IHHHHHH", 0x02014B50, 20, 20, 0, method, 0, 33) + sizes
    central += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


def deflated(count):
    return zeros(count, zlib.compressobj(9, zlib.DEFLATED, -15))


def npy_header(shape, dtype="|u1"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npz(members, method=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def idx(shape, body):
    return struct.pack(f">HBB{len(shape)}i", 0, 8, len(shape), *shape) + body


def nested_header():
    text = b"-" * 9000 + b"1"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def corpus():
    """Returns the content of hostile files by path, in the order in which they are tried."""
    lying = {"x.npy": npy_header("(60000, 8192, 8192)")}
    member = io.BytesIO()
    with tarfile.open(fileobj=member, mode="w") as archive:
        info = tarfile.TarInfo("cifar-10-batches-py/filler")
        info.size = 1 << 40
        archive.addfile(info)
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)  # in the format of gzip
    tar = bomb.compress(member.getvalue()) + zeros(GIB // 2, bomb)
    labels = gzip.compress(idx([2], bytes(2)))
    state = b"cnumpy\nndarray\n(K\x01\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"tR"
    batch = b"\x80\x02}(U\x04data" + state + b"U\x06labels](K\x00eu."
    memo = b"\x80\x02}r" + struct.pack("<I", 1 << 30) + b"."
    bytes8 = b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"."
    laughs = b"\x80\x02}(U\x04data" + pickled(np.zeros((1, 3072), np.uint8)) + b"U\x06labels]q\x01"
    laughs += b"(h\x01h\x01eu."
    return {
        "bzip2.zip": zip_entry(bz2.compress(bytes(64 << 20)), 64 << 20, zipfile.ZIP_BZIP2),
        "deflate.zip": zip_entry(deflated(300 << 20), 100),
        "deflate-true-size.zip": zip_entry(deflated(300 << 20), 600 << 20),
        "stored-lie.zip": zip_entry(b"x", GIB // 4, zipfile.ZIP_STORED),
        "huge-size.zip": zip_entry(b"x", 0xFFFFFFFE),
        "encrypted.zip": zip_entry(b"x" * 20, 8).replace(b"\x14\x00\x00\x00", b"\x14\x00\x01\x00"),
        "no-entries.zip": b"PK\x05\x06" + bytes(18),
        "flat.zip": npz({"a.png": png(9999, 9999, b"")}),
        "lying.npz": npz(lying),
        "lying-deflate.npz": npz(lying, zipfile.ZIP_DEFLATED),
        "lying-size.npz": zip_entry(npy_header("(40, 8192, 8192)"), 40 << 26, 0, b"x.npy"),
        "labels.npz": npz({"x.npy": npy_header("(1, 8, 8)") + bytes(64),
                           "y.npy": npy_header("(1, 99999999999)")}),
        "negative.npz": npz({"x.npy": npy_header("(-1, -8, 8)") + bytes(64)}),
        "overflow.npz": npz({"x.npy": npy_header(f"({2**62}, 4, 4)")}),
        "nested.npz": npz({"x.npy": nested_header()}),
        "empty.npz": npz({"x.npy": b""}),
        "mnist/train-images-idx3-ubyte.gz":
            gzip.compress(idx([2**31 - 1, 2**15, 2**15], b"")),
        "mnist2/train-images-idx3-ubyte.gz":
            gzip.compress(idx([2, 2, 2], b"")) [:-8] + bytes(8),
        "mnist3/train-images-idx3-ubyte.gz":
            gzip.compress(idx([2, 2, 2], b"") + bytes(64 << 20)),
        "mnist4/train-images-idx3-ubyte.gz":
            gzip.compress(idx([-2, -2, 2], bytes(8))),
        "mnist5/mnist.npz": npz({"x_train.npy": npy_header("(9, 99999, 99999)")}),
        "cifar/cifar-10-python.tar.gz": tar,
        "cifar2/cifar-10-batches-py/data_batch_1": batch,
        "cifar3/cifar-10-batches-py/data_batch_1": memo,
        "cifar4/cifar-10-batches-py/data_batch_1": bytes8,
        "cifar5/cifar-10-batches-py/data_batch_1": laughs,
        "cifar6/cifar-10-batches-py/data_batch_1": b"",
    } | {f"mnist{k}/train-labels-idx1-ubyte.gz": labels for k in ("", 2, 3, 4)}  # fmt: skip


def pickled(value):
    return pickle.dumps(value, 2)[2:-1]


def settings_of(path):
    """Returns the settings that load a file of the corpus."""
    for name, dataset in (("mnist", "mnist"), ("cifar", "cifar10")):
        if path.startswith(name):
            return dict(dataset=dataset, data_dir=path.split("/")[0])
    if path.startswith("prepared/"):
        return dict(dataset="./prepared")
    return dict(dataset=f"./{path}")


# Runs in a process of its own, whose peak memory is that of the worst file.
LOAD_ALL = """
import json, resource, sys
from trainer import recipes
from trainer.data import sources
from trainer.errors import TrainerError

sources.load(recipes.resolve(dict(dataset="digits")))
for path, settings in json.load(sys.stdin).items():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        sources.load(recipes.resolve(dict(batch_size=1, **settings)))
        answer = "read", ""
    except TrainerError as error:
        answer = error.exit_code, str(error)
    except BaseException as error:
        answer = type(error).__name__, str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([path, *answer, grown]))
"""


def test_hostile_files_are_named_and_take_little_memory(tmp_path):
    tried = {}
    for path, content in corpus().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
        if "labels-idx1" not in path:
            tried[path] = settings_of(path)
    answer = subprocess.run(
        [sys.executable, "-c", LOAD_ALL],
        cwd=tmp_path,
        input=json.dumps(tried),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [row[0] for row in rows] == list(tried)
    for path, code, message, grown_kib in rows:
        assert code == ExitCode.DATA, (path, code, message)
        assert Path(path).name in message or path.endswith("filler"), (path, message)
        assert "\n" not in message
        assert message.endswith("."), message
        assert grown_kib < 200 << 10, (path, message, grown_kib)


# The memory that is available.


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups_are_read(tmp_path, monkeypatch, version):
    name = "memory.limit_in_bytes" if version == 1 else "memory.max"
    used = "memory.usage_in_bytes" if version == 1 else "memory.current"
    root = tmp_path / "memory" if version == 1 else tmp_path
    inner = root / "pod" / "container"
    inner.mkdir(parents=True)
    (tmp_path / "own").write_text(f"3:{'cpu,memory' if version == 1 else ''}:/pod/container\n")
    monkeypatch.setattr(memory, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    (root / name).write_text("9223372036854771712\n" if version == 1 else "max\n")
    assert memory.container_limit() is None
    (root / "pod" / name).write_text(f"{64 << 20}\n")
    (inner / name).write_text(f"{32 << 20}\n")
    assert memory.container_limit() == memory.available_bytes() == 32 << 20
    (root / "pod" / used).write_text(f"{60 << 20}\n")
    (root / "pod" / "memory.stat").write_text(f"cache 1\ninactive_file {10 << 20}\n")
    assert memory.available_bytes() == 14 << 20  # 64 - (60 - 10)
    (tmp_path / "own").write_text("3:memory:/absent/on/this/machine\n")
    (root / name).write_text(f"{16 << 20}\n")
    assert memory.container_limit() == 16 << 20


def test_a_budget_is_shared_and_cannot_be_exceeded():
    budget = Budget(10)
    with pytest.raises(MemoryError, match="it needs"), budget.reserved(11):
        pass
    order = []

    def take(size, name):
        with budget.reserved(size):
            order.append(name)

    with budget.reserved(6):
        take(4, "fits")
        waiting = threading.Thread(target=take, args=(5, "waits"))
        waiting.start()
        waiting.join(0.1)
        order.append("freed")
    waiting.join(10)
    assert order == ["fits", "freed", "waits"]


def test_a_picture_that_needs_too_much_memory_is_named(tmp_path, monkeypatch):
    (tmp_path / "pics").mkdir()
    Image.new("L", (4000, 4000)).save(tmp_path / "pics" / "a.png")
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 20)
    with pytest.raises(DataError, match=r"a\.png cannot be read \(it needs 244 MiB of memory, but"):
        sources.load(recipes.resolve(dict(dataset=str(tmp_path / "pics"), batch_size=1)))


def test_running_out_of_memory_names_the_data_set(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(sources, "_load_named", fail)
    with pytest.raises(DataError, match="--dataset=digits needs more memory than is available"):
        sources.load(recipes.resolve(dict(dataset="digits")))


# Random damage to every kind of file.


def prepared_files(pictures):
    """Returns the content of the files of a prepared set by path."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "pics"
        place.mkdir()
        for name, data in pictures.items():
            (place / name).write_bytes(data)
        wanted = Settings(options=FormOptions((8, 8)))
        prepare.prepare(str(place), f"{folder}/prepared", wanted, Part(), lambda *_: None)
        prepare.join_parts(f"{folder}/prepared", lambda *_: None)
        found = [path for path in (Path(folder) / "prepared").rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def valid_files():
    """Returns the content of a valid file of each kind by path, and how it is packed."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 9, 3), np.uint8)
    pictures = {}
    for name in ("a.png", "b.jpg", "c.bmp", "d.gif", "e.webp", "f.tif"):
        stream = io.BytesIO()
        form = {"jpg": "jpeg", "tif": "tiff"}.get(name[2:], name[2:])
        Image.fromarray(pixels).save(stream, form)
        pictures[name] = stream.getvalue()
    arrays = {}
    for compress in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        compress(stream, x=pixels[None], y=np.zeros(1, np.int64))
        arrays[compress.__name__] = stream.getvalue()
    batch = {b"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8), b"labels": [0, 1]}
    content = pickle.dumps(batch, 2)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for k in range(1, 6):
            info = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{k}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    batches = {f"cifar/cifar-10-batches-py/data_batch_{k}": content for k in range(2, 6)}
    images = idx([2, 3, 3], bytes(18))
    labels = {"mnist/train-labels-idx1-ubyte.gz": gzip.compress(idx([2], bytes(2)))}
    with tarfile.open(fileobj=(webdataset := io.BytesIO()), mode="w") as archive:
        for name, data in {**pictures, **{f"{k}.cls": b"0" for k in "abcdef"}}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    prepared = prepared_files(pictures)
    none = {}
    return {
        **{f"pics/{name}": (data, bytes, none) for name, data in pictures.items()},
        "a.zip": (npz(pictures), bytes, none),
        "deflated.zip": (npz(pictures, zipfile.ZIP_DEFLATED), bytes, none),
        "a.npz": (arrays["savez"], bytes, none),
        "a.tar": (webdataset.getvalue(), bytes, none),
        **{name: (prepared[name], bytes, prepared) for name in prepared
           if name.endswith(("manifest.json", "rows.npz", ".u8"))},
        "deflated.npz": (arrays["savez_compressed"], bytes, none),
        "mnist/train-images-idx3-ubyte.gz": (images, gzip.compress, labels),
        "mnist/mnist.npz": (npz({"x_train.npy": npy_header("(1, 4, 4)") + bytes(16),
                                 "y_train.npy": npy_header("(1,)") + bytes(1)}), bytes, none),
        "cifar/cifar-10-batches-py/data_batch_1": (content, bytes, batches),
        "cifar/cifar-10-python.tar.gz": (tar.getvalue(), lambda b: gzip.compress(b, 1), none),
    }  # fmt: skip


VALID = valid_files()
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat"]),
        st.floats(0, 1),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, bytes(8)])),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content, edits):
    content = bytearray(content)
    for kind, where, value in edits:
        # Most files state their sizes at their start or end.
        start = int(len(content) * (where**3 if value[0] % 2 else 1 - where**3))
        if kind == "set":
            content[start : start + len(value)] = value
        elif kind == "cut":
            del content[start : start + 1 + value[0]]
        elif kind == "insert":
            content[start:start] = value
        else:
            content[start:start] = content[start : start + 64]
    return bytes(content)


@pytest.mark.parametrize("path", VALID)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=EDITS)
def test_any_damage_to_any_file_is_read_or_named(tmp_path, monkeypatch, path, edits):
    content, pack, beside = VALID[path]
    for name, data in {**beside, path: pack(damaged(content, edits))}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    given = settings_of(path)
    if path.startswith("pics/"):
        given = dict(dataset="./pics")
    try:
        data = sources.load(recipes.resolve(dict(batch_size=1, **given)))
    except TrainerError as error:
        assert error.exit_code == ExitCode.DATA, error
        assert "\n" not in str(error)
        assert str(error).endswith(".")
    else:
        assert data.images.dtype == np.uint8
        assert data.images.nbytes < 1 << 24


def test_undamaged_files_of_every_kind_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, (content, pack, beside) in VALID.items():
        for name, data in {**beside, path: pack(content)}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
        given = dict(dataset="./pics") if path.startswith("pics/") else settings_of(path)
        assert len(sources.load(recipes.resolve(dict(batch_size=1, **given)))) > 0, path


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=EDITS)
def test_any_damage_to_a_cache_entry_is_survived(tmp_path, edits):
    array_cache.write("entry.npz", {"x": np.arange(9)}, {"kind": "test"})
    (path,) = (tmp_path / "cache").rglob("entry.npz")
    path.write_bytes(damaged(path.read_bytes(), edits))
    entry = array_cache.read("entry.npz")
    assert entry is None or "x" in entry[0]


def test_equal_pictures_of_a_parquet_file_are_in_memory_once(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pictures = pyarrow.array([png(8, 8) + bytes(1 << 20)]).dictionary_encode()
    table = pyarrow.table({"image": pictures.take(pyarrow.array([0] * 200)), "label": ["a"] * 200})
    path = tmp_path / "p.parquet"
    parquet.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 10_000
    before = pyarrow.total_allocated_bytes()
    store = Parquets([path])
    assert len(store.open("p.parquet/00000/000199").read()) > 1 << 20
    assert pyarrow.total_allocated_bytes() - before < 20 << 20


def test_a_file_that_is_too_large_for_a_picture_is_not_read(tmp_path):
    path = tmp_path / "a" / "sparse.png"
    path.parent.mkdir()
    path.write_bytes(png(8, 8))
    os.truncate(path, GIB)
    settings = Settings(options=FormOptions((8, 8)))
    with pytest.raises(DataError, match=r"sparse\.png cannot be read \(its size of 1,073,741,824"):
        prepare.prepare(
            str(tmp_path), str(tmp_path.with_suffix(".out")), settings, Part(), lambda *_: None
        )


def test_the_headers_of_a_tar_are_bounded(tmp_path):
    """A sparse file whose header is said to have two gigabytes, which tarfile would read."""
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 2 * GIB
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(path, 3 * GIB)
    with pytest.raises(DataError, match=r"a header is said to have 2,147,483,648 bytes"):
        Tars([path])


@pytest.mark.parametrize("name", [".", "./", "/", "a/../../b.png", "C:\\b.png"])
def test_names_outside_of_an_archive_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("a")
        info.filename = name.rstrip("/") or "/x"
        archive.writestr(info, b"")
    with pytest.raises(DataError, match="a path outside the archive"):
        Archive(tmp_path / "a.zip")


def test_equal_names_in_an_archive_are_warned_of(tmp_path, caplog):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png(8, 8))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", png(9, 9))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for side in (8, 9):
            info = tarfile.TarInfo("a.png")
            info.size = len(png(side, side))
            archive.addfile(info, io.BytesIO(png(side, side)))
    for store in (Archive(tmp_path / "a.zip"), Tars([tmp_path / "a.tar"])):
        assert store.open("a.png").read() == png(9, 9)
        store.close()
    warnings = [record.getMessage() for record in caplog.records]
    assert [w.partition(" ")[2] for w in warnings] == [
        "contains 1 files whose names occur again later in it. Only the last file of each name is "
        "used"
    ] * 2
