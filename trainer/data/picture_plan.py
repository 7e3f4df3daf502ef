"""Which pictures of a listing are decoded, and to what shape, as their headers tell."""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np

from trainer.data import decoding
from trainer.data.decoding import Header, ImageFileError
from trainer.data.file_stores import printable
from trainer.data.reader import Reader
from trainer.errors import DataError
from trainer.files.atomic import replacing, write_text
from trainer.files.shards import FORMAT_VERSION, PLAN, DamagedShardError, Layout, read_json

ROWS = "rows.i64"  # the file that holds the positions and sides of the images of a plan


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which pictures of a listing are decoded, and to what shape.

    Attributes:
      layout: the number of images, their shape and their division into shards.
      positions: [N] int64, the positions of the pictures in the listing.
      sides: [N] int64, their shorter sides in pixels.
      smallest: the picture with the shortest side, as "NAME, is WIDTHxHEIGHT".
      smallest_side: its shorter side in pixels.
      skipped: the pictures whose headers cannot be read, each as "name (reason)".
    """

    layout: Layout
    positions: np.ndarray
    sides: np.ndarray
    smallest: str
    smallest_side: int
    skipped: tuple[str, ...]


def make_plan(reader: Reader, image_size: int) -> Plan:
    """Reads the headers of all pictures and decides on the image size and the channels.

    Raises:
      DataError: if none can be read, or one cannot and bad ones are not skipped.
    """
    listing = reader.listing
    count = len(listing.names)

    def progress(done: int) -> None:
        reader.report(done / count, f"Reading the headers of {count:,} images")

    headers = reader.map(range(count), lambda _, file: decoding.read_header(file), progress)
    good = {n: header for n, header in enumerate(headers) if isinstance(header, Header)}
    if not good:
        raise DataError(
            f"{listing.source}: none of the {count:,} images can be read. Replace the files."
        )
    smallest = min(good, key=lambda n: good[n].side)
    header = good[smallest]
    size = image_size or decoding.default_size(header.side)
    channels = 1 if all(header.is_gray for header in good.values()) else 3
    skipped = (
        reader.name_skipped(n, error)
        for n, error in enumerate(headers)
        if isinstance(error, ImageFileError)
    )
    return Plan(
        Layout.of(len(good), (size, size, channels)),
        np.fromiter(good, np.int64, len(good)),
        np.fromiter((header.side for header in good.values()), np.int64, len(good)),
        f"{printable(listing.names[smallest])}, is {header.width}x{header.height}",
        header.side,
        tuple(skipped),
    )


def write_plan(path: Path, plan: Plan) -> None:
    """Writes a plan into the folder of an entry.

    Raises:
      OSError: if it cannot be written.
    """
    rows = np.stack([plan.positions, plan.sides])
    with replacing(path / ROWS) as scratch:
        scratch.write_bytes(rows.tobytes())
    about = {
        "version": FORMAT_VERSION,
        "rows": plan.layout.rows,
        "shape": plan.layout.shape,
        "rows_per_shard": plan.layout.rows_per_shard,
        "rows_crc32": zlib.crc32(rows.tobytes()),
        "smallest": plan.smallest,
        "smallest_side": plan.smallest_side,
        "skipped": plan.skipped,
    }
    write_text(path / PLAN, json.dumps(about))


def read_plan(path: Path) -> Plan:
    """Reads a plan from the folder of an entry.

    Raises:
      DamagedShardError: if it is damaged.
      OSError: if it cannot be read.
    """
    about = read_json(path / PLAN)
    content = (path / ROWS).read_bytes()
    try:
        if about["version"] != FORMAT_VERSION or zlib.crc32(content) != about["rows_crc32"]:
            raise DamagedShardError(f"{ROWS} does not match its checksum")
        height, width, channels = map(int, about["shape"])
        shape = (height, width, channels)
        layout = Layout(int(about["rows"]), shape, int(about["rows_per_shard"]))
        if layout != Layout.of(layout.rows, shape):
            raise DamagedShardError(f"{PLAN} has another layout")
        positions, sides = np.frombuffer(content, np.int64).reshape(2, layout.rows)
        return Plan(
            layout,
            positions,
            sides,
            str(about["smallest"]),
            int(about["smallest_side"]),
            tuple(map(str, about["skipped"])),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise DamagedShardError(f"{PLAN} is not a plan ({error})") from None
