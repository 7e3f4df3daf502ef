"""Which pictures of a listing are decoded, and to what form, as their headers tell."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from trainer.config import image_size
from trainer.data import decoding
from trainer.data.decoding import ImageFileError
from trainer.data.file_stores import printable
from trainer.data.form import Form, FormOptions
from trainer.data.reader import Reader
from trainer.errors import DataError
from trainer.files.atomic import replacing, write_text
from trainer.files.shards import FORMAT_VERSION, PLAN, DamagedShardError, Layout, read_json

ROWS = "rows.i64"  # the file that holds the positions of the images of a plan, and which are small


EXAMINED = 100  # pictures with an alpha channel that are searched for transparent pixels


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which pictures of a listing are decoded, and to what form.

    Attributes:
      layout: the number of images, their shape and their division into shards.
      fit: how the pictures are brought to this shape.
      positions: [N] int64, the positions of the pictures in the listing.
      is_small: [N] bool, whether they have fewer pixels than their images on a side.
      smallest: the picture with the shortest side, as "NAME, is WIDTHxHEIGHT".
      smallest_side: its shorter side in pixels.
      skipped: the pictures whose headers cannot be read, each as "name (reason)".
      notes: log messages about the choice of the form.
    """

    layout: Layout
    fit: str
    positions: np.ndarray
    is_small: np.ndarray
    smallest: str
    smallest_side: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def form(self) -> Form:
        """The form of the images."""
        return Form(*self.layout.shape, self.fit)


def make_plan(reader: Reader, options: FormOptions) -> Plan:
    """Reads the headers of all pictures and decides on the form of the images.

    Raises:
      DataError: if none can be read, or one cannot and bad ones are not skipped.
    """
    listing = reader.listing
    count = len(listing.names)

    def progress(done: int) -> None:
        reader.report(done / count, f"Reading the headers of {count:,} images")

    headers = _Headers(count)
    results = reader.map(range(count), headers.read, progress)
    if not headers.is_read.any():
        raise DataError(
            f"{listing.source}: none of the {count:,} images can be read. Replace the files."
        )
    sides = np.minimum(headers.heights, headers.widths)
    smallest = int(np.argmin(np.where(headers.is_read, sides, np.iinfo(sides.dtype).max)))
    height, width = int(headers.heights[smallest]), int(headers.widths[smallest])
    form, notes = _choose_form(reader, options, headers, min(height, width))
    errors = ((n, error) for n, error in enumerate(results) if isinstance(error, ImageFileError))
    skipped = tuple(reader.name_skipped(n, error) for n, error in errors)
    positions = np.flatnonzero(headers.is_read)
    return Plan(
        Layout.of(len(positions), form.shape),
        form.fit,
        positions,
        form.enlarges(headers.heights[positions], headers.widths[positions]),
        f"{printable(listing.names[smallest])}, is {image_size.shown(height, width)}",
        min(height, width),
        skipped,
        tuple(notes),
    )


class _Headers:
    """What the headers of pictures state, in arrays, because there may be millions.

    Attributes:
      is_read: [N] bool, whether the header of a picture could be read.
      heights, widths: [N] int32, in pixels.
      is_gray, has_alpha, is_animated: [N] bool, see `Header`.
    """

    def __init__(self, count: int) -> None:
        self.is_read, self.is_gray = np.zeros(count, bool), np.zeros(count, bool)
        self.has_alpha, self.is_animated = np.zeros(count, bool), np.zeros(count, bool)
        self.heights, self.widths = np.zeros(count, np.int32), np.zeros(count, np.int32)

    def read(self, number: int, file: IO[bytes]) -> None:
        """Reads the header of a picture."""
        header = decoding.read_header(file)
        self.heights[number], self.widths[number] = header.height, header.width
        self.is_gray[number], self.has_alpha[number] = header.is_gray, header.has_alpha
        self.is_animated[number] = header.is_animated
        self.is_read[number] = True

    def __len__(self) -> int:
        """Returns the number of pictures whose headers could be read."""
        return int(self.is_read.sum())


def _choose_form(
    reader: Reader, options: FormOptions, headers: _Headers, smallest_side: int
) -> tuple[Form, list[str]]:
    """Returns the form that suits pictures, and log messages about the choice.

    Args:
      reader: reads the pictures.
      options: what is asked of the form.
      headers: what their headers state.
      smallest_side: the shortest side of all pictures in pixels.
    """
    side = decoding.default_size(smallest_side)
    height, width = options.sides if any(options.sides) else (side, side)
    channels, notes = _choose_channels(reader, options, headers)
    fit = options.fit
    if fit == "auto":
        fit = "pad" if channels == 4 else "crop"
    form, total = Form(height, width, channels, fit), len(headers)
    if animated := int(headers.is_animated.sum()):
        notes.append(
            f"{animated:,} of {total:,} pictures have several frames, of which only the first is "
            "used"
        )
    return form, notes


def _choose_channels(
    reader: Reader, options: FormOptions, headers: _Headers
) -> tuple[int, list[str]]:
    """Returns the number of channels, and log messages about the choice."""
    if options.channels not in ("auto", "opaque"):
        return int(options.channels), []
    opaque = 1 if headers.is_gray[headers.is_read].all() else 3
    with_alpha = np.flatnonzero(headers.has_alpha)
    if options.channels == "opaque" or not len(with_alpha):
        return opaque, []
    having = f"{len(with_alpha):,} of {len(headers):,} pictures have an alpha channel"
    if 2 * len(with_alpha) <= len(headers):
        return opaque, [f"{having}. Transparent pixels become white (--channels=4 keeps them)"]
    examined = with_alpha[:: -(-len(with_alpha) // EXAMINED)].tolist()
    found = reader.map(
        examined,
        lambda _, file: decoding.is_transparent(file, reader.pixels),
        lambda done: reader.report(done / len(examined), "Looking for transparent pixels"),
    )
    if True in found:
        return 4, [f"{having}, so the images have 4 channels (--channels=opaque has white instead)"]
    return opaque, [
        f"{having}, but none of the {len(examined):,} that were examined has transparent pixels. "
        "Should others have some, these become white (--channels=4 keeps them)"
    ]


def write_plan(path: Path, plan: Plan) -> None:
    """Writes a plan into the folder of an entry.

    Raises:
      OSError: if it cannot be written.
    """
    rows = np.stack([plan.positions, plan.is_small.astype(np.int64)])
    with replacing(path / ROWS) as scratch:
        scratch.write_bytes(rows.tobytes())
    about = {
        "version": FORMAT_VERSION,
        "rows": plan.layout.rows,
        "shape": plan.layout.shape,
        "rows_per_shard": plan.layout.rows_per_shard,
        "rows_crc32": zlib.crc32(rows.tobytes()),
        "fit": plan.fit,
        "smallest": plan.smallest,
        "smallest_side": plan.smallest_side,
        "skipped": plan.skipped,
        "notes": plan.notes,
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
        positions, is_small = np.frombuffer(content, np.int64).reshape(2, layout.rows)
        return Plan(
            layout,
            str(about["fit"]),
            positions,
            is_small.astype(bool),
            str(about["smallest"]),
            int(about["smallest_side"]),
            tuple(map(str, about["skipped"])),
            tuple(map(str, about["notes"])),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise DamagedShardError(f"{PLAN} is not a plan ({error})") from None
