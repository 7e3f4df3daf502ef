"""Labels from files: dataset.json, CSV and JSON-lines, in folders and archives and beside them."""

import json
import logging
import zipfile

import pytest
from PIL import Image

from tests.helpers.pictures import load
from trainer.errors import DataError, ExitCode


@pytest.fixture
def place(tmp_path):
    """A folder of the pictures 0.png to 3.png, as NVIDIA's tool lays them out."""
    for k in range(4):
        path = tmp_path / "pics" / "00000" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 60 * k).save(path)
    return tmp_path / "pics"


def labelled(data):
    """Returns the class name of each picture by its gray value."""
    pairs = zip(data.images[:, 0, 0, 0] // 60, data.labels, strict=True)
    return {int(k): data.class_names[label] for k, label in pairs}


def archive(folder, target):
    with zipfile.ZipFile(target, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder))
    return target


def dataset_json(labels):
    pairs = [[f"00000/{k}.png", label] for k, label in enumerate(labels)]
    return json.dumps({"labels": None if labels == () else pairs})


EXPECTED = {0: "dog", 1: "cat", 2: "cat", 3: "dog"}
JSON_LINES = "".join(
    json.dumps({"file_name": f"00000/{k}.png", "label": name, "text": "a pet"}) + "\n"
    for k, name in EXPECTED.items()
)
ROWS = "".join(f"00000/{k}.png,{name}\n" for k, name in EXPECTED.items())

SWAPPED = "".join(f"{name};./00000/{k}.png\r\n" for k, name in EXPECTED.items())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset.json", dataset_json(list(EXPECTED.values()))),
        ("labels.csv", f"file,label\n{ROWS}"),
        ("labels.csv", ROWS),
        ("labels.csv", "\ufeff" + f"id,file,label\n{ROWS}".replace("00000", "7,00000", 9)),
        ("labels.csv", f"Label;File\r\n{SWAPPED}"),
        ("metadata.jsonl", JSON_LINES),
    ],
)
def test_forms_of_label_files(place, name, content):
    (place / name).write_text(content)
    assert labelled(load(place)) == EXPECTED
    assert load(place).class_names == ("cat", "dog")


def test_numbers_are_sorted_as_numbers_and_keep_their_names(place):
    (place / "dataset.json").write_text(dataset_json([10, 2, 10, 1]))
    data = load(place)
    assert data.class_names == ("1", "2", "10")
    assert labelled(data) == {0: "10", 1: "2", 2: "10", 3: "1"}


def test_labels_inside_and_beside_an_archive(place, tmp_path):
    (place / "dataset.json").write_text(dataset_json(list(EXPECTED.values())))
    inside = archive(place, tmp_path / "inside.zip")
    (place / "dataset.json").rename(tmp_path / "dataset.json")
    beside = archive(place, tmp_path / "beside.zip")
    assert labelled(load(inside)) == EXPECTED
    assert labelled(load(beside)) == EXPECTED


def test_a_file_beside_an_archive_that_is_about_other_pictures_is_not_used(place, tmp_path, caplog):
    (tmp_path / "labels.csv").write_text("file,label\nx.png,cat\n")
    with caplog.at_level(logging.INFO, "trainer"):
        data = load(archive(place, tmp_path / "pics.zip"))
    assert data.class_names == ("00000",)
    assert "labels.csv is not used: it names no picture" in caplog.text


def test_null_labels_make_a_set_without_labels(place):
    (place / "dataset.json").write_text(dataset_json(()))
    assert load(place).class_names == ()


def test_an_unrelated_file_leaves_the_folders_as_classes(place, caplog):
    (place / "dataset.json").write_text('{"name": "pets"}')
    (place / "metadata.jsonl").write_text('{"file_name": "00000/0.png", "text": "a dog"}\n')
    with caplog.at_level(logging.INFO, "trainer"):
        assert load(place).class_names == ("00000",)
    assert 'dataset.json is not used: it has no "labels"' in caplog.text


def test_each_split_may_have_its_own_file(place):
    (place / "00000").rename(place / "train")
    (place / "test").mkdir()
    for k in (2, 3):
        (place / f"train/{k}.png").rename(place / f"test/{k}.png")
    lines = JSON_LINES.replace("00000/", "").splitlines()
    (place / "train/metadata.jsonl").write_text("\n".join(lines[:2]))
    assert labelled(load(place)) == {0: "dog", 1: "cat"}
    assert "2 of 4 pictures have no label" in refused(place, split="all")  # test/ has no labels
    (place / "test/metadata.jsonl").write_text("\n".join(lines[2:]))
    assert labelled(load(place, split="all")) == EXPECTED


def refused(path, **given):
    with pytest.raises(DataError) as error:
        load(path, **given)
    assert error.value.exit_code == ExitCode.DATA
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset.json", dataset_json([0, [0, 1], 1, 1]), "Several labels per picture are not"),
        ("dataset.json", dataset_json([0, 1.5, 1, 1]), "has the label 1.5. Use whole numbers"),
        ("dataset.json", dataset_json([0, None, 1, 1]), "1 of 4 pictures have no label, for ex"),
        ("dataset.json", '{"labels": [["00000/0.png"]]}', "is not a pair of a file and a label"),
        ("dataset.json", "[" * 100000, "dataset.json cannot be read ("),
        ("labels.csv", ROWS + "00000/0.png,cat\n", "has the labels dog and cat. Several labels"),
        ("labels.csv", f"file,labels\n{ROWS}", "several labels per picture are not supported"),
        ("labels.csv", "file,label\n00000/0.png\n", "line 2 has 1 columns"),
        ("labels.csv", "file,label\nx/0.png,cat\n", "names none of the 4 pictures, but for exam"),
        ("metadata.jsonl", '{"file": "00000/0.png", "labels": [1, 2]}', "several labels per pict"),
        ("metadata.jsonl", '{"label": 3}', "None is not the path of a picture"),
        (
            "metadata.jsonl",
            '{"file": "00000/0.png"}\n{"file": "00000/1.png", "label": "cat"}',
            "3 of 4 pictures have no label",
        ),
    ],
)
def test_unsuitable_files_are_named(place, name, content, message):
    (place / name).write_text(content)
    assert message in refused(place)
    assert name in refused(place)


def test_labels_of_missing_pictures_are_warned_of(place, caplog):
    (place / "labels.csv").write_text(f"{ROWS}00000/9.png,cat\n")
    assert labelled(load(place)) == EXPECTED
    assert "labels for 1 pictures that do not exist, for example 00000/9.png" in caplog.text


def test_changed_labels_do_not_decode_the_pictures_again(place, monkeypatch):
    load(place)
    monkeypatch.setattr("trainer.data.decoding.decode", None)
    (place / "labels.csv").write_text(ROWS)
    assert labelled(load(place)) == EXPECTED
