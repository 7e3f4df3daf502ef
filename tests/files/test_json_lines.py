"""Tests of files with one JSON object per line."""

import errno
import os

import pytest

from trainer.files import json_lines
from trainer.files.json_lines import Content, JsonLinesFile

GOOD = b'{"step": 1}\n{"step": 2, "name": "\xc3\xa9"}\n'
RECORDS = [{"step": 1}, {"step": 2, "name": "é"}]
DAMAGED_LINES = [
    b"{torn\n",
    b"\n",
    b"[1, 2]\n",
    b'{"kimg": 1}\n',
    b'{"step": "2"}\n',
    b"\xff\xfe\n",
    b"[" * 100_000 + b"\n",
]


def test_records_are_read_and_an_absent_file_has_none(tmp_path):
    path = tmp_path / "lines"
    assert json_lines.read(path, {"step": int}) == Content([])
    assert json_lines.read_last(path) == {}
    path.write_bytes(b"")
    assert json_lines.read(path, {"step": int}) == Content([])
    assert json_lines.read_last(path) == {}
    json_lines.write(path, RECORDS)
    assert json_lines.read(path, {"step": int}) == Content(RECORDS)
    assert json_lines.read_last(path) == RECORDS[1]


@pytest.mark.parametrize("line", DAMAGED_LINES)
def test_reading_ends_at_a_damaged_line(tmp_path, line):
    path = tmp_path / "lines"
    path.write_bytes(GOOD + line + GOOD)
    assert json_lines.read(path, {"step": int}) == Content(RECORDS, damaged=True)


@pytest.mark.parametrize("rest", [b'{"st', b'{"step": 3}'])
def test_an_incomplete_last_line_is_torn_and_not_damaged(tmp_path, rest):
    path = tmp_path / "lines"
    path.write_bytes(GOOD + rest)
    assert json_lines.read(path, {"step": int}) == Content(RECORDS, torn=True)
    assert json_lines.read_last(path) == RECORDS[1]
    path.write_bytes(rest)
    assert json_lines.read(path, {"step": int}) == Content([], torn=True)
    assert json_lines.read_last(path) == {}


def test_the_last_record_is_read_from_the_end_of_the_file(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"x" * 3 * json_lines.TAIL_BYTES + b"\n" + GOOD)
    assert json_lines.read_last(path) == RECORDS[1]
    path.write_bytes(GOOD + b"{torn\n")
    assert json_lines.read_last(path) == {}


def test_a_failed_flush_leaves_complete_lines_and_keeps_the_others(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    file = JsonLinesFile(path)
    file.add(RECORDS[0])
    file.flush()
    file.add(RECORDS[1])
    write = os.write

    def write_part(descriptor, content):
        if len(content) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[:9])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_part)
        with pytest.raises(OSError, match="No space left"):
            file.flush()
    assert json_lines.read(path, {"step": int}) == Content(RECORDS[:1])
    file.flush()
    file.close()
    assert json_lines.read(path, {"step": int}) == Content(RECORDS)
