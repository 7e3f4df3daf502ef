"""`prepare`: sources, splits, parts, kills, damage, and training on what it wrote."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.pictures import load
from trainer.config.image_size import ImageSize
from trainer.data import user_images
from trainer.data.form import FormOptions
from trainer.data.preparing import duplicates, part, prepare
from trainer.data.preparing.part import Part, Settings
from trainer.errors import BusyError, DataError, UsageError
from trainer.files.shards import MappedImages

SIZE = 8


def pixels(number, size=(12, 10)):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def encoded(number):
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """Twenty pictures of the classes a and b."""
    for number in range(20):
        path = tmp_path / "pics" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return tmp_path / "pics"


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(part, "SHARD_BYTES", 6 * SIZE * SIZE * 3)  # of six images


def make(source, out, shard=None, **settings):
    size = settings.pop("image_size", SIZE)
    settings = Settings(options=FormOptions((size, size)), **settings)
    prepare.prepare(str(source), str(out), settings, shard or Part(), lambda *_: None)
    return prepare.join_parts(str(out), lambda *_: None) if shard is None else None


def by_class(data):
    """Returns the set of images of each class, which does not depend on their order."""
    return {
        name: {image.tobytes() for image in data.images[:][data.labels == number]}
        for number, name in enumerate(data.class_names or ("",))
    }


# What is read.


def test_a_prepared_folder_holds_the_images_that_training_would_decode(
    pictures, small_shards, tmp_path
):
    manifest = make(pictures, tmp_path / "out")
    direct, prepared = load(pictures, image_size=SIZE), load(tmp_path / "out")
    np.testing.assert_array_equal(prepared.images[:], direct.images)
    np.testing.assert_array_equal(prepared.labels, direct.labels)
    assert prepared.class_names == ("a", "b")
    assert len(manifest["shards"]) == 4
    assert manifest["classes"] == {"a": 10, "b": 10}
    assert manifest["sizes"]["smallest"] == (12, 10)
    with Image.open(tmp_path / "out" / "preview.png") as preview:
        assert preview.width > 900


def tar_of(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def webdataset(number, form):
    key, name = f"s/{number:04}", "ab"[number % 2]
    label = {"cls": name.encode(), "json": json.dumps({"label": name, "n": 1}).encode()}[form]
    return {f"{key}.png": encoded(number), f"{key}.{form}": label, f"{key}.txt": b"a caption"}


def as_zip(folder, pictures):
    with zipfile.ZipFile(folder / "p.zip", "w") as archive:
        for path in pictures.rglob("*.png"):
            archive.write(path, path.relative_to(pictures))
    return folder / "p.zip"


def as_tar_of_folders(folder, pictures):
    members = {
        path.relative_to(pictures).as_posix(): path.read_bytes() for path in pictures.rglob("*.png")
    }
    return tar_of(folder / "p.tar", members)


def as_tars(folder, pictures):
    (folder / "tars").mkdir()
    for start, form in ((0, "cls"), (10, "json")):
        members = {}
        for number in range(start, start + 10):
            members |= webdataset(number, form)
        tar_of(folder / "tars" / f"{start}.tar", members)
    return folder / "tars"


def as_npz(folder, pictures):
    x = np.stack([pixels(number) for number in range(20)])
    np.savez(folder / "p.npz", x=x, y=np.arange(20) % 2)
    return folder / "p.npz"


@pytest.mark.parametrize("form", [as_zip, as_tar_of_folders, as_tars, as_npz])
def test_other_sources_give_the_same_images(pictures, tmp_path, form):
    source = form(tmp_path, pictures)
    make(source, tmp_path / "out")
    found, wanted = by_class(load(tmp_path / "out")), by_class(load(pictures, image_size=SIZE))
    if form is as_npz:
        wanted = {"0": wanted["a"], "1": wanted["b"]}
    assert found == wanted


def test_parquet_files_give_the_same_images(pictures, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = pyarrow.table({
        "image": [{"bytes": encoded(n), "path": f"{n}.png"} for n in range(20)],
        "label": [n % 2 for n in range(20)],
    })  # fmt: skip
    about = {"info": {"features": {"label": {"names": ["a", "b"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    parquet.write_table(table, tmp_path / "p.parquet", row_group_size=7)
    make(tmp_path / "p.parquet", tmp_path / "out")
    assert by_class(load(tmp_path / "out")) == by_class(load(pictures, image_size=SIZE))
    (tmp_path / "p.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(DataError, match=r"p\.parquet cannot be read"):
        make(tmp_path / "p.parquet", tmp_path / "other")


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_form_is_that_of_training(pictures, tmp_path, fit):
    options = FormOptions((8, 12), fit, "4")
    settings = Settings(options=options)
    prepare.prepare(str(pictures), str(tmp_path / "out"), settings, Part(), lambda *_: None)
    prepare.join_parts(str(tmp_path / "out"), lambda *_: None)
    form = dict(image_size=ImageSize(8, 12), fit=fit, channels="4")
    direct, prepared = load(pictures, **form), load(tmp_path / "out", **form)
    np.testing.assert_array_equal(prepared.images[:], direct.images)
    with pytest.raises(DataError, match=r"--channels=3: .* was prepared with channels 4"):
        load(tmp_path / "out", channels="3")


def test_classes_that_are_numbers_keep_their_order(tmp_path):
    members = {}
    for number in range(11):
        members |= {f"{number}.png": encoded(number), f"{number}.cls": b"%d" % number}
    make(tar_of(tmp_path / "p.tar", members), tmp_path / "out")
    assert load(tmp_path / "out").class_names == tuple(map(str, range(11)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.tar", b"x" * 2000, "It must be a .tar archive that is not compressed"),
        ("p.tar", "cut", "truncated|unexpected end of data"),
        (
            "p.png",
            encoded(0),
            "is neither a folder of pictures nor a .zip, .npz, .tar, .parquet file",
        ),
        ("p.tar", "label", r"0001.json cannot be read .*Replace or remove the file"),
        ("p.tar", "unlabelled", r"1 of 2 pictures have no label"),
    ],
)
def test_unusable_sources_are_named(tmp_path, name, content, message):
    members = webdataset(0, "cls") | webdataset(1, "json")
    if content == "label":
        members["s/0001.json"] = b"{"
    if content == "unlabelled":
        del members["s/0001.json"]
    if isinstance(content, str):
        tar_of(tmp_path / name, members)
        if content == "cut":
            os.truncate(tmp_path / name, 700)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        make(tmp_path / name, tmp_path / "out")


# Splits and duplicates.


def test_splits_depend_on_the_content_alone(pictures, tmp_path):
    make(pictures, tmp_path / "first", test_share=0.4)
    first = {image.tobytes() for image in load(tmp_path / "first", split="test").images}
    assert 0 < len(first) < 20
    for number in range(20, 30):
        (pictures / "a" / f"{number}.png").write_bytes(encoded(number))
    (pictures / "a" / "00.png").rename(pictures / "b" / "zz.png")
    make(pictures, tmp_path / "second", test_share=0.4)
    held = {image.tobytes() for image in load(tmp_path / "second", split="test").images}
    train = {image.tobytes() for image in load(tmp_path / "second").images}
    assert first < held
    assert not held & train
    assert len(load(tmp_path / "second", split="all")) == 30


def test_folders_of_splits_are_kept_and_not_split_again(pictures, tmp_path):
    (tmp_path / "both").mkdir()
    shutil.copytree(pictures, tmp_path / "both" / "train")
    shutil.copytree(pictures, tmp_path / "both" / "test")
    manifest = make(tmp_path / "both", tmp_path / "out")
    assert manifest["splits"] == {"train": 20, "test": 20}
    assert manifest["duplicates"]["exact"] == 20
    with pytest.raises(UsageError, match=r"--test_share=0\.1: .* has its own splits"):
        make(tmp_path / "both", tmp_path / "other", test_share=0.1)


def test_exact_and_near_duplicates_are_reported(pictures, tmp_path):
    smooth = Image.fromarray(pixels(99, (4, 4))).resize((64, 64), Image.Resampling.BICUBIC)
    smooth.save(pictures / "a" / "smooth.png")
    smooth.resize((50, 50)).save(pictures / "b" / "smaller.jpg", quality=85)
    shutil.copy(pictures / "a" / "02.png", pictures / "b" / "copy.png")
    make(pictures, tmp_path / "out", image_size=16)
    found = json.loads((tmp_path / "out" / "duplicates.json").read_text())
    assert found["exact"] == [["a/02.png", "b/copy.png"]]
    assert sorted(map(sorted, found["near"])) == [
        ["a/02.png", "b/copy.png"],
        ["a/smooth.png", "b/smaller.jpg"],
    ]


def test_different_pictures_are_no_near_duplicates():
    thumbs = np.random.default_rng(0).integers(0, 256, (500, 64), np.uint8)
    assert not duplicates.near(thumbs)
    assert not duplicates.near(thumbs[:0])
    assert not duplicates.exact(thumbs[:0])
    noisy = np.clip(
        thumbs.astype(int) + np.random.default_rng(1).integers(-2, 3, (500, 64)), 0, 255
    )
    groups = duplicates.near(np.concatenate([thumbs, noisy.astype(np.uint8)]))
    assert len(groups) > 490
    assert all(second - first == 500 for first, second in groups)


# Bad pictures.


def test_bad_pictures_are_named_or_skipped_and_listed(pictures, tmp_path):
    content = encoded(4)
    (pictures / "a" / "04.png").write_bytes(content[: len(content) // 2])
    (pictures / "b" / "01.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"b/01\.png cannot be read .* or set --skip_bad_images"):
        make(pictures, tmp_path / "out")
    manifest = make(pictures, tmp_path / "out", skip_bad=True)
    assert {name.split(" ")[0] for name in manifest["skipped"]} == {"a/04.png", "b/01.png"}
    assert len(load(tmp_path / "out")) == manifest["images"] == 18
    assert by_class(load(tmp_path / "out")) == by_class(
        load(pictures, image_size=SIZE, skip_bad_images=True)
    )


# Parts.


def test_parts_join_to_the_set_that_one_command_prepares(pictures, small_shards, tmp_path):
    make(pictures, tmp_path / "whole")
    for index in (2, 0):
        make(pictures, tmp_path / "parts", Part(index, 3))
    with pytest.raises(DataError, match=r"Prepare --shard=1/3 first"):
        prepare.join_parts(str(tmp_path / "parts"), lambda *_: None)
    with pytest.raises(DataError, match="is a prepared set that is not complete"):
        load(tmp_path / "parts")
    make(pictures, tmp_path / "parts", Part(1, 3))
    prepare.join_parts(str(tmp_path / "parts"), lambda *_: None)
    whole, parts = load(tmp_path / "whole"), load(tmp_path / "parts")
    np.testing.assert_array_equal(whole.images[:], parts.images[:])
    np.testing.assert_array_equal(whole.labels, parts.labels)


def test_parts_that_do_not_fit_are_not_joined(pictures, tmp_path):
    make(pictures, tmp_path / "out", Part(0, 2))
    make(pictures, tmp_path / "out", Part(1, 2), image_size=9)
    with pytest.raises(DataError, match=r"part-00001-of-00002 has settings"):
        prepare.join_parts(str(tmp_path / "out"), lambda *_: None)


# Kills and damage.

SLOW = """
import sys, time
from trainer.data import decoding
from trainer.data.form import FormOptions
from trainer.data.preparing import part, prepare

part.SHARD_BYTES = 6 * 8 * 8 * 3
decode = decoding.decode

def slow(*arguments):
    time.sleep(0.05)
    return decode(*arguments)

decoding.decode = slow
settings = part.Settings(options=FormOptions((8, 8)))
prepare.prepare(sys.argv[1], sys.argv[2], settings, part.Part(), lambda *_: None)
prepare.join_parts(sys.argv[2], lambda *_: None)
"""


def test_a_killed_command_goes_on_and_leaves_no_set_that_reads_as_complete(
    pictures, small_shards, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(pictures), str(out)])
    while len(list(out.glob("part-*/shard-*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    with pytest.raises(BusyError, match="another process prepares part-00000-of-00001"):
        make(pictures, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match="not complete"):
        load(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("part-*/shard-0000[01].u8")}
    assert len(times) == 2
    make(pictures, out)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    np.testing.assert_array_equal(load(out).images[:], load(pictures, image_size=SIZE).images)
    manifest = (out / "manifest.json").stat().st_mtime_ns
    make(pictures, out)  # a complete set is left as it is
    assert (out / "manifest.json").stat().st_mtime_ns == manifest


def test_a_set_is_not_mixed_from_different_pictures(pictures, tmp_path):
    make(pictures, tmp_path / "out")
    (pictures / "a" / "20.png").write_bytes(encoded(20))
    with pytest.raises(UsageError, match=r"begun with other pictures\. Use another --out"):
        make(pictures, tmp_path / "out")
    with pytest.raises(UsageError, match="begun with other settings and pictures"):
        make(pictures, tmp_path / "out", image_size=12)


@pytest.mark.parametrize("name", ["rows.npz", "part-00000-of-00001/shard-00001.u8"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_damage_is_found_and_the_command_repairs_it(pictures, small_shards, tmp_path, name, how):
    out = tmp_path / "out"
    make(pictures, out)
    good = load(out)
    content = bytearray((out / name).read_bytes())
    content[len(content) // 2] ^= 1
    if how == "remove":
        (out / name).unlink()
    else:
        (out / name).write_bytes(content if how == "flip" else content[:-5])
    with pytest.raises(DataError, match=f"damaged.*{os.path.basename(name)}|{name} is damaged"):
        load(out)
    (out / name).unlink(missing_ok=True)
    make(pictures, out)
    np.testing.assert_array_equal(load(out).images[:], good.images[:])


# Training.


def test_a_prepared_set_trains_as_the_pictures_do(pictures, tmp_path, tiny, run, monkeypatch):
    make(pictures, tmp_path / "out", image_size=16)
    lines = []
    for name, dataset, limit in (
        ("a", pictures, 1 << 30),
        ("b", tmp_path / "out", 0),
    ):
        monkeypatch.setattr(user_images, "MAX_IN_MEMORY", limit)
        run_dir = tmp_path / f"run-{name}"
        run(tiny(dataset=str(dataset), image_size=16, length="1 steps", run_dir=str(run_dir)))
        lines.append([json.loads(line) for line in open(run_dir / "metrics.jsonl")])
    assert len({json.dumps([r["d_loss"] for r in found]) for found in lines}) == 1


def test_a_prepared_set_streams_and_its_fingerprint_is_that_of_its_copy(
    pictures, small_shards, tmp_path, monkeypatch
):
    make(pictures, tmp_path / "out", test_share=0.3)
    held = load(tmp_path / "out")
    monkeypatch.setattr(user_images, "MAX_IN_MEMORY", 0)
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    streamed = load(tmp_path / "copy")
    assert isinstance(streamed.images, MappedImages)
    np.testing.assert_array_equal(streamed.images[:], held.images)
    assert streamed.fingerprint == held.fingerprint
    assert load(tmp_path / "copy", split="all").fingerprint != held.fingerprint


# The command line.


def test_the_command_prepares_and_says_how_to_train(trainer, pictures, tmp_path):
    arguments = ("prepare", f"--source={pictures}", "--out=out", "--image_size=16")
    result = trainer(*arguments)
    assert result.returncode == 0, result.stderr
    assert "20 images of 16 px, colour, 2 classes (train 20)" in result.stdout
    assert "To train: python -m trainer train --dataset=out" in result.stdout
    assert trainer("train", "--dataset=out", "--dry_run").returncode == 0
    fixed = ("--image_size=16", "--fit=crop", "--channels=3")
    for index in (0, 1):
        one = trainer(*arguments[:2], "--out=p", *fixed, f"--shard={index}/2")
        assert "--join --out=p" in one.stdout, one.stderr
    assert trainer("prepare", "--join", "--out=p").stdout.startswith("20 images")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--source=pics", "--out is missing"),
        ("--out=out", "--source is missing"),
        ("--source=nowhere --out=out", "--source=nowhere does not exist"),
        ("--source=pics --out=out --shard=2/2", "--shard=2/2 must be INDEX/COUNT"),
        ("--source=pics --out=out --shard=0/2", "--shard needs --image_size"),
        ("--join --source=pics --out=out", "--join joins the parts in --out"),
        ("--join --out=out", "holds no parts"),
        ("--source=pics --out=out --test_share=1", "--test_share=1 must be from 0 to below 1"),
        ("--source=pics --out=out --image_size=4", "--image_size=4 must be 8 or more"),
        (
            "--source=pics --out=out --image_size=8 --fit=crop --channels=3 --shard=0/99",
            "too few for 99 parts",
        ),
    ],
)
def test_errors_are_one_line(trainer, pictures, arguments, message):
    result = trainer("prepare", *arguments.split())
    assert result.returncode in (64, 65)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_prepared_set_of_another_size_or_version_is_refused(pictures, tmp_path):
    out = tmp_path / "out"
    make(pictures, out)
    with pytest.raises(DataError, match=r"--image_size=16: .* prepared with images of 8 px"):
        load(out, image_size=16)
    with pytest.raises(DataError, match=r"--split=test: .* has no images in this split"):
        load(out, split="test")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "format": 9}))
    with pytest.raises(DataError, match="its format is 9, and this version reads 1"):
        load(out)


def test_sources_and_sets_in_buckets(pictures, tmp_path, gcs):
    for path in pictures.rglob("*.png"):
        gcs.put(f"pics/{path.relative_to(pictures).as_posix()}", path.read_bytes())
    gcs.log.clear()
    make("gs://bucket/pics", "gs://bucket/out", Part(1, 2))
    read = {name for method, name in gcs.log if method == "download" and "pics/" in name}
    assert len(read) == 10  # the pictures of this part only
    with pytest.raises(DataError, match=r"Prepare --shard=0/2 first"):
        prepare.join_parts("gs://bucket/out", lambda *_: None)
    make("gs://bucket/pics", "gs://bucket/out", Part(0, 2))
    prepare.join_parts("gs://bucket/out", lambda *_: None)
    assert "out/manifest.json" in gcs.names()
    make("gs://bucket/pics", "gs://bucket/whole")
    whole, data = load("gs://bucket/whole"), load("gs://bucket/out")
    assert by_class(data) == by_class(whole)
    np.testing.assert_array_equal(data.images[:], load(pictures, image_size=SIZE).images)


def test_changed_labels_are_not_mixed_with_those_of_a_complete_part(pictures, tmp_path):
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    rows = [f"{name},{'xy'[number % 2]}\n" for number, name in enumerate(names)]
    (pictures / "labels.csv").write_text("".join(rows))
    make(pictures, tmp_path / "out")
    (pictures / "labels.csv").write_text("".join(rows).translate(str.maketrans("xy", "yx")))
    with pytest.raises(UsageError, match="was begun with other labels"):
        make(pictures, tmp_path / "out")


def test_parts_of_different_lists_of_pictures_are_not_joined(pictures, tmp_path):
    make(pictures, tmp_path / "out", Part(0, 2))
    for name in ("a/00.png", "b/01.png"):
        (pictures / name).unlink()
    make(pictures, tmp_path / "out", Part(1, 2))
    with pytest.raises(DataError, match="were prepared from different lists of pictures"):
        prepare.join_parts(str(tmp_path / "out"), lambda *_: None)


def test_the_form_of_the_images_is_stated(trainer, pictures):
    Image.new("RGBA", (10, 10)).save(pictures / "a" / "clear.png")
    result = trainer("prepare", f"--source={pictures}", "--out=out", "--image_size=12x9")
    lines = result.stdout + result.stderr
    assert "the smallest picture, a/00.png, is 12x10 px" in lines or "is 10 px" in lines
    assert "pictures are cropped to this shape" in lines
    assert "1 of 21 pictures have an alpha channel. Transparent pixels become white" in lines
    assert "Enlarged: 1 that are smaller than 12x9 px" in lines


def test_a_source_is_neither_a_prepared_set_nor_around_it(pictures, tmp_path):
    make(pictures, tmp_path / "out")
    with pytest.raises(UsageError, match=r"--source=.*out is a prepared set"):
        make(tmp_path / "out", tmp_path / "again")
    with pytest.raises(UsageError, match=r"--out=.* is in the folder of the pictures"):
        make(pictures, pictures / "out")


def test_opaque_images_are_not_those_of_a_set_with_transparency(pictures, tmp_path):
    settings = Settings(options=FormOptions((8, 8), "pad", "4"))
    prepare.prepare(str(pictures), str(tmp_path / "out"), settings, Part(), lambda *_: None)
    prepare.join_parts(str(tmp_path / "out"), lambda *_: None)
    with pytest.raises(DataError, match=r"--channels=opaque: .* was prepared with channels 4"):
        load(tmp_path / "out", channels="opaque")
    make(pictures, tmp_path / "rgb")
    assert load(tmp_path / "rgb", channels="opaque").images.shape[3] == 3


def refused(_):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_files_that_may_not_be_read_are_named_and_not_called_damaged(
    pictures, tmp_path, monkeypatch
):
    tar_of(tmp_path / "p.tar", {"a/0.png": encoded(0)})
    make(pictures, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_: refused(_))
        with pytest.raises(DataError, match=r"p\.tar cannot be read \(Permission denied\)\. Make"):
            make(tmp_path / "p.tar", tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        with pytest.raises(DataError, match=r"manifest\.json cannot be read .*Make it readable"):
            load(tmp_path / "out")
    monkeypatch.setattr("mmap.mmap", lambda *_, **__: refused(_))
    with pytest.raises(DataError, match=r"u8: Permission denied\)\. Make its files readable"):
        load(tmp_path / "out")


def test_running_out_of_memory_is_named(pictures, tmp_path, monkeypatch):
    def too_much(*_):
        raise MemoryError

    monkeypatch.setattr(prepare, "prepare_part", too_much)
    with pytest.raises(DataError, match="needs more memory than is available"):
        make(pictures, tmp_path / "out")


# Names of files that hold many pictures.


def test_names_in_a_tar_may_begin_with_the_folder_itself(pictures, tmp_path):
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        archive.add(pictures, ".")
    assert by_class(load(tmp_path / "p.tar", image_size=SIZE)) == by_class(
        load(pictures, image_size=SIZE)
    )


@pytest.mark.parametrize("name", ["../a/0.png", "/a/0.png", "a/../../0.png"])
def test_names_that_lead_out_of_a_tar_are_refused(tmp_path, name):
    tar_of(tmp_path / "p.tar", {name: encoded(0), "a/1.png": encoded(1)})
    with pytest.raises(DataError, match=r"p\.tar contains .*, a path outside the archive"):
        make(tmp_path / "p.tar", tmp_path / "out")


def test_the_names_of_packed_files_state_the_split(tmp_path, caplog):
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text("x")
    files = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "val-0")
    for number, name in enumerate(files):
        tar_of(folder / f"{name}.tar", webdataset(2 * number, "cls") | webdataset(9, "cls"))
    caplog.set_level("INFO")
    counts = {split: len(load(tmp_path / "hub", split=split)) for split in ("train", "test", "all")}
    assert counts == {"train": 4, "test": 2, "all": 6}
    assert "2 images in val files are not used" in caplog.text
    tar_of(folder / "more.tar", webdataset(7, "cls"))
    with pytest.raises(DataError, match=r"contains more\.tar next to test-00000-of-00001\.tar"):
        load(tmp_path / "hub")


@pytest.mark.parametrize(
    ("labels", "message"),
    [([[0, 1], [1]], "the column label holds several labels per"), ([0.5, 1.0], "is double")],
)
def test_unsuitable_labels_in_parquet_files_are_named(tmp_path, labels, message):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"image": [encoded(0), encoded(1)], "label": labels})
    parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(DataError, match=message):
        make(tmp_path / "p.parquet", tmp_path / "out")


def test_a_file_as_the_destination_is_a_usage_error(pictures, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for out in ("file", "file/inside"):
        with pytest.raises(UsageError, match=r"--out=\S+ cannot be written \((File|Not)"):
            make(pictures, tmp_path / out)
