"""`evaluate --out`: results outside of the run directory, which may be read-only."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from tests.helpers.runs import steps
from trainer.commands import evaluate
from trainer.errors import ExitCode, UsageError
from trainer.evaluation import classifier, finished_run


@pytest.fixture
def finished(tiny, run, tmp_path, monkeypatch) -> Path:
    """Returns the directory of a finished run of two steps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(classifier.IMAGES, 1, 2000)
    config = tiny(recipe="mlp-small", length=steps(2))
    run(config)
    return Path(config.run_dir)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_results_are_written_to_out_only(finished, tmp_path):
    before = files_of(finished)
    flags = ["--num_samples=100", "--devices=cpu", f"--run_dir={finished}"]
    evaluate.main([*flags, f"--out={tmp_path}/new/results"], lambda: False)
    assert files_of(finished) == before
    assert files_of(tmp_path / "new" / "results") == {
        "evaluation.json", "evaluation/nearest.png", "evaluation/interpolation.png",
    }  # fmt: skip


def test_an_output_that_cannot_be_written_is_refused_before_measuring(finished, tmp_path, trainer):
    (tmp_path / "file").write_text("in the way")
    answer = trainer(
        "evaluate", f"--run_dir={finished}", "--devices=cpu", f"--out={tmp_path}/file/results"
    )
    assert answer.returncode == ExitCode.USAGE
    assert answer.stdout == ""
    assert answer.stderr == (
        f"error: --out={tmp_path}/file/results cannot be written (Not a directory). Choose another "
        "folder.\n"
    )
    answer = trainer("evaluate", f"--run_dir={finished}", "--out=gs://bucket/results")
    assert answer.returncode == ExitCode.USAGE
    assert "--out=gs://bucket/results must be a path on a disk" in answer.stderr


def test_a_read_only_run_directory_is_refused_before_measuring(finished, monkeypatch):
    create = tempfile.TemporaryFile

    def refuse(dir: str | None = None):
        if dir == str(finished):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return create(dir=dir)

    def measure(*arguments: object) -> None:
        raise AssertionError("measured in vain")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(finished_run, "create_evaluator", measure)
    with pytest.raises(UsageError, match=rf"--out={finished} cannot be written \(Read-only"):
        evaluate.main([f"--run_dir={finished}", "--devices=cpu"], lambda: False)
