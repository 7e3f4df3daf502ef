"""Counts what a week of training sends to a bucket for the files of a run that grow.

    python -m benchmarks.uploads [--days=7]

The files grow as in a run with the default settings: metrics.jsonl and TensorBoard's scalars every
5 s, a sample grid in TensorBoard every 100 s (20 kimg at 200 images/s), and a start and an end in
events.jsonl every day. The mirror of a run uploads them to a server on this machine, one pass for
every 30 s of the run, without waiting. Contents are 16 times smaller than in a run, and the bytes
are multiplied by 16. Checkpoints, pictures and the lease are not part of it.

`naive` is what the same passes would send if each file that has grown were sent whole. Classes of
operations are those of the prices of Google Cloud Storage: A writes and lists, B reads.
"""

import collections
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import harness
from tests.helpers.fake_gcs import Server

SHRINK = 16
DAY_SECS = 86_400
LINE_BYTES, PICTURE_BYTES, EVENT_BYTES = 535, 12_800, 250  # measured in runs on `digits`
LINE_SECS, PICTURE_SECS, TENSORBOARD_SECS = 5, 100, 120
CLASSES = {"upload": "A", "compose": "A", "copy": "A", "list": "A", "get": "B", "download": "B"}
METRICS, EVENTS, TENSORBOARD = "metrics.jsonl", "events.jsonl", "tensorboard/events.out.tfevents.1"


def scalar_bytes() -> int:
    """Returns the bytes that a line of metrics adds to TensorBoard's file."""
    from trainer.reporting.lines import SCALARS, Progress
    from trainer.reporting.tensorboard import TensorBoardWriter

    lines = 100
    with tempfile.TemporaryDirectory() as folder:
        writer = TensorBoardWriter(Path(folder))
        for step in range(lines):
            line: Any = {"step": step, **dict.fromkeys(SCALARS, 0.5)}
            writer.show(line, Progress(0.0, 0.0, 0.0, 0.0))
        writer.close()
        (file,) = Path(folder).iterdir()
        return file.stat().st_size // lines


def uploads(*, days: float, per_line: int) -> list[dict[str, Any]]:
    """Returns a row for each growing file of a run.

    Args:
      days: length of the run.
      per_line: bytes that a line of metrics adds to TensorBoard's file.
    """
    from trainer.storage.address import Address
    from trainer.storage.bucket import Bucket
    from trainer.storage.mirror import LOW_PRIORITY_SECS, PAUSE_SECS, Mirror

    logging.disable(logging.WARNING)
    server = Server()
    os.environ["STORAGE_EMULATOR_HOST"] = server.url
    naive: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])  # bytes, writes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tensorboard").mkdir()
        bucket = Bucket(Address("bucket", "run", "run_dir"))
        mirror = Mirror(
            bucket, folder, {}, keep=1, max_failed=3, check_ownership=lambda: None
        )  # fmt: skip
        pause = int(PAUSE_SECS)
        for now in range(0, int(days * DAY_SECS), pause):
            every_pause = pause // LINE_SECS
            grow(folder / METRICS, every_pause * LINE_BYTES)
            pictures = (now + pause) // PICTURE_SECS - now // PICTURE_SECS
            if (now + pause) % TENSORBOARD_SECS == 0:  # TensorFlow flushes every two minutes
                lines = TENSORBOARD_SECS // LINE_SECS
                grow(folder / TENSORBOARD, lines * per_line + pictures * PICTURE_BYTES)
            if now % DAY_SECS == 0:
                grow(folder / EVENTS, 2 * EVENT_BYTES)
            is_full = (now + pause) % int(LOW_PRIORITY_SECS) == 0
            mirror._next_full_pass = 0.0 if is_full else float("inf")
            sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
            changed = {p: n for p, n in sizes.items() if known_size(mirror, folder, p) != n}
            mirror._run_pass(None, ending=False)
            for path, size in changed.items():
                key = str(path.relative_to(folder))
                if is_full or not key.startswith("tensorboard"):
                    naive[key] = [naive[key][0] + size, naive[key][1] + 1]
        found = [row(server, folder, each, naive[each]) for each in (METRICS, TENSORBOARD, EVENTS)]
    server.close()
    return found


def grow(path: Path, count: int) -> None:
    """Appends bytes to a file, a part of `count`."""
    with path.open("ab") as file:
        file.write(os.urandom(max(1, count // SHRINK)))


def known_size(mirror: Any, folder: Path, path: Path) -> int:
    """Returns the size of a file when it was last uploaded; -1 if it never was."""
    stamp = mirror._uploaded.get(str(path.relative_to(folder)))
    return stamp[1] if stamp else -1


def row(server: Server, folder: Path, name: str, naive: list[int]) -> dict[str, Any]:
    """Returns the row of a file, after a check that the bucket has its content."""
    head, _, base = name.rpartition("/")
    full = f"run/{name}"
    tail = "/".join(part for part in ("run", head, f".tail-{base}") if part)
    if server.objects["bucket"][full].content != (folder / name).read_bytes():
        raise RuntimeError(f"{name} in the bucket differs from the file")
    counts = collections.Counter(
        CLASSES.get(method, "free") for method, where in server.log if where in (full, tail)
    )
    sent = sum(server.received.get(each, 0) for each in (full, tail))
    return {
        "file": base.partition(".out")[0] if head else base,
        "size_MB": SHRINK * (folder / name).stat().st_size / 1e6,
        "sent_MB": SHRINK * sent / 1e6,
        "class_A": counts["A"],
        "class_B": counts["B"],
        "deletes": counts["free"],
        "naive_sent_MB": SHRINK * naive[0] / 1e6,
        "naive_class_A": naive[1],
    }


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--days", type=float, default=7.0, help="length of the run")
    options = parser.parse_args()
    per_line = harness.alone("benchmarks.uploads:scalar_bytes")
    rows = harness.alone("benchmarks.uploads:uploads", days=options.days, per_line=per_line)
    harness.report("uploads", rows)


if __name__ == "__main__":
    main()
