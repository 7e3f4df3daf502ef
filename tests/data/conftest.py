"""Fixtures for tests of data sets."""

import pytest


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """Gives each test a cache of its own; returns its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gan-trainer"


@pytest.fixture
def place(tmp_path):
    """Returns an empty folder for pictures."""
    (tmp_path / "pics").mkdir()
    return tmp_path / "pics"
