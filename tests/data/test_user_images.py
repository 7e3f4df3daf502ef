"""Tests of a user's own images: formats, folders, archives, arrays, the cache and bad input."""

import json
import logging
import os
import struct
import tarfile
import time
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.helpers.pictures import load
from trainer import recipes
from trainer.commands.flags import config_flags
from trainer.commands.flags.command_line import CommandLine
from trainer.data import array_store, decoding, file_stores, sources, user_images
from trainer.errors import DataError, ExitCode, StoppedError, UsageError
from trainer.files import cache
from trainer.files.shards import MappedImages
from trainer.machine import memory

RED, WHITE = (255, 0, 0), (255, 255, 255)


def picture(path, color=RED, size=(16, 16), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def classes(root, counts, **options):
    """Writes a folder of gray images for each class, whose gray value depends on the class."""
    for number, (name, count) in enumerate(sorted(counts.items())):
        for k in range(count):
            picture(root / name / f"{k}.png", 40 * number, mode="L", **options)
    return root


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def refused(path, **given):
    """Returns the one-line message of the error that loading raises."""
    with pytest.raises(DataError) as error:
        load(path, **given)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# One picture.


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.JPEG", "d.bmp", "e.gif", "f.webp", "g.tif"])
def test_formats_are_read(place, name):
    picture(place / name, (200, 100, 50))
    data = load(place)
    assert data.images.shape == (1, 16, 16, 3)
    np.testing.assert_allclose(data.images[0, 8, 8], (200, 100, 50), atol=4)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, (255,)),
        ("L", 90, (90,)),
        ("LA", (90, 255), (90,)),
        ("LA", (0, 51), (204,)),
        ("I;16", 90 * 257, (90,)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("P", 0, (0,)),
    ],
)
def test_modes_are_converted(place, mode, color, expected):
    picture(place / "a.png", color, mode=mode)
    # Runs of earlier versions laid transparent pictures on white.
    assert tuple(load(place, channels="opaque").images[0, 5, 5]) == expected


def test_sixteen_bits_are_scaled_not_clipped(place):
    ramp = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    for name in ("a.png", "b.tif"):
        Image.fromarray(ramp).save(place / name)
    for image in load(place).images:
        np.testing.assert_array_equal(image[..., 0], np.rint(ramp / 257.0))


def test_cmyk_and_palettes_are_converted(place):
    picture(place / "a.jpg", (0, 255, 255, 0), mode="CMYK")
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.save(place / "b.png")
    palette.save(place / "c.gif")
    palette.save(place / "d.png", transparency=1)
    images = load(place).images
    np.testing.assert_allclose(images[:3, 8, 8], [RED] * 3, atol=4)
    assert tuple(images[3, 8, 8]) == WHITE


def test_exif_rotation_is_applied(place):
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 32, 16))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(place / "a.jpg", exif=exif)
    data = load(place)
    assert data.images[0, :8].max() < 20
    assert data.images[0, -8:].min() > 235


def test_the_first_frame_of_a_gif_is_taken(place):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(place / "a.gif", save_all=True, append_images=frames[1:])
    assert tuple(load(place).images[0, 0, 0]) == RED


def test_the_central_square_is_taken_and_resized_with_antialiasing(place):
    image = Image.new("L", (96, 32), 0)
    fine = np.indices((32, 32)).sum(0) % 2 * np.uint8(255)  # a checkerboard of single pixels
    image.paste(Image.fromarray(fine.astype(np.uint8)), (32, 0))
    image.save(place / "a.png")
    small = load(place, image_size=8).images
    assert small.shape == (1, 8, 8, 1)
    assert small.min() > 110
    assert small.max() < 145


@pytest.mark.parametrize(("side", "size"), [(300, 64), (64, 64), (31, 28), (5, 8)])
def test_the_default_size_is_that_of_the_smallest_picture(place, side, size):
    picture(place / "a.png", size=(side, 400))
    picture(place / "b.png", size=(400, 400))
    assert load(place).shape.size == size


def test_colour_or_gray_follows_the_whole_set(place):
    picture(place / "train" / "a.png", 7, mode="L")
    assert load(place).shape.channels == 1
    picture(place / "test" / "b.png", RED)
    assert load(place).shape.channels == 3  # for any split


# Splits and classes.


@pytest.mark.parametrize("form", ["folder", "zip", "wrapped"])
def test_folders_are_splits_and_classes(tmp_path, place, form):
    classes(place / "train", {"zebra": 3, "ant": 2, "Ünïcode cat": 1})
    classes(place / "test", {"zebra": 1, "ant": 1})
    for junk in ("train/ant/.hidden.png", "__MACOSX/train/ant/0.png", "train/ant/notes.txt"):
        (place / junk).parent.mkdir(parents=True, exist_ok=True)
        (place / junk).write_text("no picture")
    path = place
    if form != "folder":
        top = "set/" if form == "wrapped" else ""
        files = [p for p in place.rglob("*") if p.is_file()]
        members = {f"{top}{p.relative_to(place).as_posix()}": p.read_bytes() for p in files}
        path = zipped(tmp_path / "my sät.zip", members)
    data = load(path)
    assert data.class_names == ("ant", "zebra", "Ünïcode cat")
    assert data.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert data.labels.dtype == np.int32
    test = load(path, split="test")
    assert test.labels.tolist() == [0, 1]
    assert test.class_names == data.class_names
    assert len(load(path, split="all")) == 8


def test_pixels_stay_with_their_labels(place):
    classes(place, {"a": 40, "b": 1, "c": 33})  # more than one thread task
    data = load(place)
    assert (data.images[:, 0, 0, 0] == 40 * data.labels).all()
    assert np.bincount(data.labels).tolist() == [40, 1, 33]
    assert data.describe().class_names == ("a", "b", "c")


def test_loose_pictures_have_no_labels(place):
    for name in ("b.png", "a b é.png"):
        picture(place / name)
    data = load(place)
    assert data.shape.classes == 0
    assert data.class_names == ()
    assert data.labels.tolist() == [0, 0]


def test_folders_below_classes_belong_to_them(place):
    picture(place / "cat" / "old" / "a.png")
    picture(place / "dog" / "b.png")
    assert load(place).class_names == ("cat", "dog")


def test_links_are_followed_once(tmp_path, place):
    classes(tmp_path / "elsewhere", {"a": 2})
    (place / "cat").symlink_to(tmp_path / "elsewhere" / "a")
    (place / "loop").symlink_to(place)
    assert len(load(place)) == 2


def test_a_validation_split_is_left_out_and_said(place, caplog):
    classes(place / "train", {"a": 2})
    classes(place / "val", {"a": 3})
    with caplog.at_level(logging.INFO, "trainer"):
        assert len(load(place)) == 2
    assert "3 images in val/ are not used" in caplog.text


def test_pictures_of_other_formats_are_named(place, caplog):
    classes(place, {"a": 2})
    (place / "a" / "photo.HEIC").write_bytes(b"x")
    (place / "a" / "notes.txt").write_bytes(b"x")
    assert len(load(place)) == 2
    assert "1 pictures of formats that are not read are left out, for example a/photo.HEIC" in (
        caplog.text
    )


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ([], {}, "contains no images (.png,"),
        (["a.txt", "sub/b.pdf", ".c.png"], {}, "but 2 other files, for example a.txt"),
        (["a.png"], {"split": "test"}, "--split=test: --dataset="),
        (["train/a.png"], {"split": "test"}, "has no folder test/ (only train/). Set --split=all."),
        (["test/a.png"], {"split": "train"}, "has no folder train/ (only test/). Set --split=all."),
        (["a.png", "cat/b.png"], {}, "contains a.png outside of its class folders"),
        (["train/a.png", "bus/b.png"], {}, "contains bus/b.png next to a folder train/"),
        (
            ["train/a/1.png", "test/b/1.png"],
            {"split": "test"},
            "the class b, which train/ does not have",
        ),
    ],
)
def test_folders_that_cannot_be_meant_are_refused(place, files, given, message):
    for name in files:
        picture(place / name, format="PNG")
    assert message in refused(place, **given)


# Bad files.


def huge_png(width, height):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def bad_files(place):
    picture(place / "ok.jpg", size=(64, 64))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    halves = {}
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(noise).save(place / name)
        content = (place / name).read_bytes()
        halves[name] = content[: len(content) // 2]
        (place / name).unlink()
    return {
        **halves,
        "empty.png": b"",
        "text.jpg": b"not a picture",
        "huge.png": huge_png(10_001, 10_000),
        "huger.png": huge_png(60_000, 60_000),
    }


REASONS = {
    "cut.png": "truncated",
    "cut.jpg": "truncated",
    "empty.png": "it is not a PNG",
    "text.jpg": "it is not a PNG",
    "huge.png": "its 10001x10000 pixels are more than 100,000,000",
    "huger.png": "it has more than 100,000,000 pixels",
}


@pytest.mark.parametrize("name", sorted(REASONS))
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_bad_picture_stops_the_run_and_is_named(tmp_path, place, name, form):
    content = bad_files(place)[name]
    (place / name).write_bytes(content)
    path = place
    if form == "zip":
        path = zipped(tmp_path / "a.zip", {p.name: p.read_bytes() for p in place.iterdir()})
    message = refused(path)
    assert f": {name} cannot be read (" in message
    assert REASONS[name] in message
    assert "--skip_bad_images" in message


def test_bad_pictures_are_skipped_and_counted_in_one_line(place, caplog):
    for name, content in bad_files(place).items():
        (place / name).write_bytes(content)
    for _ in ("decoded", "cached"):
        caplog.clear()
        assert len(load(place, skip_bad_images=True)) == 1
        line = "6 of 7 images cannot be read and are skipped. The first one: "
        assert [line in record.getMessage() for record in caplog.records] == [True]
    assert "cannot be read" in refused(place)  # without the flag it is still an error
    (place / "ok.jpg").unlink()
    assert "none of the 6 images can be read" in refused(place, skip_bad_images=True)


def test_labels_stay_with_pictures_when_others_are_skipped(place):
    classes(place, {"a": 3, "b": 3})
    (place / "a" / "1.png").write_bytes(b"")
    data = load(place, skip_bad_images=True)
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert (data.images[:, 0, 0, 0] == 40 * data.labels).all()


def test_small_pictures_that_are_enlarged_are_counted(place, caplog):
    picture(place / "a.png")
    picture(place / "b.png", size=(40, 40))
    assert load(place, image_size=32).shape.size == 32
    assert "1 of 2 images are smaller than 32 pixels and are enlarged" in caplog.text


# Archives.


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "C:\\x.png", "..\\x"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name):
    path = zipped(tmp_path / "a.zip", {name: b"", "b.png": b""})
    assert "a path outside the archive" in refused(path)


def test_archives_that_unpack_to_far_more_are_refused(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", {"a.png": bytes(1 << 20)})
    monkeypatch.setattr(file_stores, "MAX_MEMBER", 1 << 19)
    assert "a.png cannot be read (its unpacked size of 1,048,576 bytes exceeds 524,288)" in refused(
        path
    )
    monkeypatch.setattr(file_stores, "MAX_UNPACKED", 1 << 19)
    assert "times its size, which is not plausible for images" in refused(path)


def test_damaged_archives_are_named(tmp_path, place):
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK torn")
    assert "a.zip cannot be read (" in refused(path)
    content = picture(place / "a.png").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", content)
    damaged = bytearray(path.read_bytes())
    damaged[60] ^= 255
    path.write_bytes(damaged)
    assert "a.png cannot be read (Bad CRC-32" in refused(path)


# Arrays.


def test_npz_without_splits(tmp_path):
    path = tmp_path / "sät one.npz"
    x = np.random.default_rng(0).integers(0, 256, (6, 16, 16), np.uint8)
    np.savez(path, x=x, y=np.array([0, 1, 2, 2, 2, 2], np.int64)[:, None])
    data = load(path)
    np.testing.assert_array_equal(data.images[..., 0], x)
    assert data.labels.tolist() == [0, 1, 2, 2, 2, 2]
    assert data.class_names == ("0", "1", "2")
    assert load(path, split="all").fingerprint == data.fingerprint
    assert "has no x_test (only x)" in refused(path, split="test")
    np.savez(path, x=x)
    assert load(path).class_names == ()


def test_npz_with_splits_is_cut_square_and_resized(tmp_path):
    path = tmp_path / "a.npz"
    wide = np.zeros((2, 20, 40, 3), np.uint8)
    wide[:, :, 10:30] = 200
    np.savez_compressed(path, x_train=wide, y_train=[0, 1], x_test=wide[:1], y_test=[1])
    data = load(path, split="all", image_size=8)
    assert data.images.shape == (3, 8, 8, 3)
    assert (data.images == 200).all()
    assert data.labels.tolist() == [0, 1, 1]
    assert load(path).shape.size == 20
    assert load(path, split="test").class_names == ("0", "1")  # as in training


X = np.zeros((4, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(x=X / 255.0), "x is float64, not uint8. Save (x * 255).round().astype('uint8')."),
        (dict(x=X - 1.0), "Save ((x + 1) * 127.5).round().astype('uint8')."),
        (dict(x=X + np.float32(9)), "x is float32, not uint8. Save x.round()"),
        (dict(x=X.astype(np.uint16) + 65535), "Save (x / 65535 * 255).round()"),
        (dict(x=X.transpose(0, 3, 1, 2)), "Save x.transpose(0, 2, 3, 1)"),
        (dict(x=X[0, 0]), "x has shape [16, 3], not [N, H, W]"),
        (dict(x=np.zeros((4, 16, 16, 2), np.uint8)), "Save gray or RGB images"),
        (dict(x=X[:0]), "x contains no images"),
        (dict(x=np.array([X, None], object)), "x contains Python objects, which could run code"),
        (dict(images=X), "contains images. Name the array of images x"),
        (dict(x_test=X), "has no x_train (only x_test)"),
        (dict(x=X, y=[0, 1, 2]), "y has 3 labels for 4 images"),
        (
            dict(x=X, y=[0, 1, 3, 3]),
            "the labels range from 0 to 3 with 3 different values",
        ),
        (dict(x=X, y=[-1, 0, 1, 1]), "the labels range from -1 to 1"),
        (
            dict(x=X, y=[0.0, 1.0, 0.0, 1.0]),
            "y is float64 of shape [4]. Save the labels as integers",
        ),
    ],
)
def test_npz_of_another_kind_are_refused(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    assert message in refused(path)


def test_files_that_are_no_npz_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with open(path, "wb") as file:
        np.save(file, X)
    assert "a.npz cannot be read (" in refused(path)


# The cache.


def forbid(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decoding, "read_header", fail)
    monkeypatch.setattr(decoding, "decode", fail)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_the_second_load_decodes_nothing(tmp_path, place, monkeypatch, form):
    classes(place / "train", {"a": 2, "b": 2})
    classes(place / "test", {"a": 1})
    path = place
    if form == "zip":
        members = {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*.png")}
        path = zipped(tmp_path / "a.zip", members)
    first = load(path)
    forbid(monkeypatch)
    again = load(path)
    assert again.fingerprint == first.fingerprint
    assert load(path, split="test").labels.tolist() == [0]  # one entry serves all splits


def test_a_changed_picture_or_size_is_decoded_anew(place):
    path = picture(place / "a.png")
    first = load(place)
    picture(path, "blue")
    os.utime(path, ns=(1, 1))
    assert load(place).fingerprint != first.fingerprint
    assert load(place, image_size=8).shape.size == 8


@pytest.mark.parametrize("damage", ["flip", "cut"])
@pytest.mark.parametrize("name", ["shard-00000.u8", "shard-00000.json", "plan.json", "rows.i64"])
def test_a_damaged_entry_is_made_anew(place, cache_home, caplog, monkeypatch, name, damage):
    picture(place / "a.png")
    first = load(place)
    (entry,) = cache_home.iterdir()
    victim = entry / name
    content = bytearray(victim.read_bytes())
    content[-9] ^= 255
    victim.write_bytes(content[: -9 if damage == "cut" else None])
    assert load(place).fingerprint == first.fingerprint
    assert "is damaged" in caplog.text
    forbid(monkeypatch)
    load(place)


def test_a_cache_that_cannot_be_written_is_done_without(place, cache_home, caplog, monkeypatch):
    picture(place / "a.png")
    cache_home.parent.write_text("a file in the way")
    assert len(load(place)) == 1
    assert "Cannot cache the decoded images in" in caplog.text
    monkeypatch.setattr(cache, "folder", lambda: None)
    assert len(load(place)) == 1
    assert "no home folder" in caplog.text


def test_what_a_killed_run_left_in_the_cache_is_removed(place, cache_home):
    for name, age in ((".part-old", 2 * cache.LEFTOVER_SECS), (".part-new", 0)):
        (cache_home / name).mkdir(parents=True)
        os.utime(cache_home / name, (time.time() - age,) * 2)
    (cache_home / ".part-old.npz").write_bytes(b"a file")
    os.utime(cache_home / ".part-old.npz", (0, 0))
    picture(place / "a.png")
    load(place)
    left = {p.name for p in cache_home.iterdir() if p.name.startswith(".")}
    assert left == {".part-new"}


# The run.


def test_progress_is_reported_and_may_stop_the_reading(place):
    classes(place, {"a": 70})
    heard = []
    config = recipes.resolve(dict(dataset=str(place)))
    sources.load(config, lambda share, what: heard.append((share, what)))
    assert heard[-1] == (1.0, "Decoding 70 images")
    assert [share for share, _ in heard[:3]] == [32 / 70, 64 / 70, 1.0]

    def stop(share, what):
        raise StoppedError("stop")

    with pytest.raises(StoppedError):
        sources.load(config.replace(image_size=8), stop)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_larger_than_memory_are_read_when_needed(tmp_path, monkeypatch, channels):
    rng = np.random.default_rng(0)
    parts = {
        "x_train": rng.integers(0, 256, (30, 24, 40, channels), np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": rng.integers(0, 256, (6, 24, 40, channels), np.uint8),
        "y_test": np.arange(6) % 3,
    }
    np.savez(tmp_path / "a.npz", **parts)
    for settings in ({}, {"split": "all", "image_size": 16}, {"image_size": "20x36"}):
        held = load(tmp_path / "a.npz", **settings)
        with monkeypatch.context() as scarce:
            (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4 kB\n")
            scarce.setattr(memory, "MEMINFO", tmp_path / "meminfo")
            streamed = load(tmp_path / "a.npz", **settings)
            assert isinstance(streamed.images, MappedImages)
        np.testing.assert_array_equal(streamed.images[:], held.images)
        assert streamed.describe() == held.describe()
        assert streamed.size_message.partition(":")[0] == held.size_message.partition(":")[0]


def test_arrays_are_unpacked_only_to_fill_the_cache(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=np.zeros((40, 64, 64), np.uint8))
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    first = load(tmp_path / "a.npz")
    monkeypatch.setattr(array_store.ArrayFile, "_unpack", None)
    assert load(tmp_path / "a.npz").fingerprint == first.fingerprint


def test_a_tar_is_read_as_the_folder_of_its_pictures(place):
    classes(place, {"a": 3, "b": 2})
    with tarfile.open(place.parent / "pics.tar", "w") as archive:
        archive.add(place, arcname="")
    one, other = load(place), load(place.parent / "pics.tar")
    assert one.describe() == other.describe()
    assert user_images.count(recipes.resolve(dict(dataset=str(place.parent / "pics.tar")))) == 5


def test_archives_count_only_in_a_folder_without_pictures(place):
    classes(place, {"a": 3, "b": 2})
    with tarfile.open(place / "left.tar", "w"):
        pass
    assert len(load(place)) == 5


def test_without_classes_only_an_explicit_conditional_is_an_error(place):
    picture(place / "a.png")
    config = recipes.resolve(dict(dataset=str(place), batch_size=1))
    data = sources.load(config)
    assert config.conditional
    assert not sources.resolve_conditional(config, data).conditional
    with pytest.raises(DataError, match=r"has no labels\. Sort .* or set --noconditional"):
        sources.resolve_conditional(config, data, was_requested=True)
    picture(place / "cat" / "a.png").rename(place / "cat" / "b.png")
    (place / "a.png").unlink()
    with pytest.raises(DataError, match=r"has only one class\. Sort"):
        sources.resolve_conditional(config, sources.load(config), was_requested=True)


@pytest.mark.parametrize(
    ("dataset", "run_dir"),
    [
        ("/data/my pictures/", "runs/dcgan-my pictures"),
        ("../faces.v2", "runs/dcgan-faces.v2"),
        ("sets/faces.v2.zip", "runs/dcgan-faces.v2"),
        ("faces.npz", "runs/dcgan-faces"),
        ("mnist", "runs/dcgan-mnist"),
    ],
)
def test_the_run_directory_is_named_after_the_path(dataset, run_dir):
    line = CommandLine("train", "")
    config_flags.define_settings(line)
    values = line.parse([f"--dataset={dataset}"])
    assert config_flags.resolve(values, {})[0].run_dir == run_dir


def test_paths_are_told_from_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, message in (
        ("here", "--dataset=here contains no images"),
        ("~/here", "--dataset=~/here contains no images"),
        ("a/b", "--dataset=a/b does not exist. Set --dataset to a folder or a .zip, .npz,"),
        ("new.zip", "--dataset=new.zip does not exist. Set --dataset to a folder"),
        ("mnits", "--dataset=mnits does not exist. Did you mean mnist? Set --dataset to a folder"),
        ("", "--dataset= does not exist. Set --dataset to a folder"),
    ):
        with pytest.raises(DataError) as error:
            sources.load(recipes.resolve(dict(dataset=name)))
        assert str(error.value).startswith(message)
    (tmp_path / "digits").mkdir()
    assert sources.load(recipes.resolve(dict(dataset="digits"))).shape.size == 28


def test_a_run_on_a_folder(tiny, run, place):
    classes(place, {"a": 9, "b": 3, "c": 1})
    config = tiny(dataset=str(place), length="2 steps")
    assert "16x16x1, 3 classes, conditional" in run(config)
    about = json.loads((place.parent / "run" / "data.json").read_text())
    assert about["class_names"] == ["a", "b", "c"]
    reals = Image.open(place.parent / "run" / "samples" / "reals.png")
    assert reals.size == (2 * 16, 3 * 16)
    assert "is complete" in run(config)


def test_a_run_without_labels_is_unconditional_and_says_so(tiny, run, place):
    for k in range(9):
        picture(place / f"{k}.png", (9 * k, 0, 0))
    output = run(tiny(dataset=str(place), length="1 steps"))
    assert "has no labels, so the networks are trained without labels (--noconditional)" in output
    assert "16x16x3, 0 classes\n" in output
    assert not json.loads((place.parent / "run" / "config.json").read_text())["conditional"]


def test_a_size_that_the_networks_cannot_make_is_a_usage_error(tiny, run, place):
    classes(place, {"a": 5, "b": 5}, size=(40, 40))
    with pytest.raises(UsageError, match="--image_size=7"):
        run(tiny(dataset=str(place), image_size=7))
    assert not (place.parent / "run").exists()  # so another size does not conflict with a run


def test_exit_codes_of_bad_input(trainer, tmp_path, place):
    picture(place / "a.png")
    (place / "b.png").write_bytes(b"broken")
    cases = [
        (["--dataset=no/where"], ExitCode.DATA, "no/where does not exist"),
        (["--dataset=pics"], ExitCode.DATA, "b.png cannot be read"),
        (["--dataset=pics", "--image_size=2000"], ExitCode.USAGE, "is too large"),
        (
            ["--dataset=pics", "--skip_bad_images", "--batch_size=1", "--conditional"],
            ExitCode.DATA,
            "--conditional: --dataset=pics has no labels",
        ),
    ]
    for arguments, code, message in cases:
        answer = trainer("train", *arguments)
        assert answer.returncode == code
        assert message in answer.stderr
        assert answer.stderr.count("\n") == 1
