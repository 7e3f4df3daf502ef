"""Draws pictures of a data set side by side, one row per class if there are few classes."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainer.files.atomic import replacing

CELL, GAP, TEXT = 96, 4, 14  # pixels
COLUMNS, MAX_ROWS = 10, 10


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a sheet.

    Attributes:
      caption: text above the row; "" for none.
      pictures: positions of its pictures.
    """

    caption: str
    pictures: tuple[int, ...]


def choose(labels: np.ndarray, class_names: Sequence[str]) -> list[Row]:
    """Chooses pictures spread evenly over a set, or over each of its classes.

    Args:
      labels: [N] integers.
      class_names: the names of the classes; empty without labels.
    """
    if not 1 < len(class_names) <= MAX_ROWS:
        chosen = _spread(np.arange(len(labels)), COLUMNS * MAX_ROWS)
        return [Row("", chosen[n : n + COLUMNS]) for n in range(0, len(chosen), COLUMNS)]
    rows = []
    for number, name in enumerate(class_names):
        members = np.flatnonzero(labels == number)
        rows.append(Row(f"{name} ({len(members):,})", _spread(members, COLUMNS)))
    return rows


def _spread(positions: np.ndarray, count: int) -> tuple[int, ...]:
    count = min(count, len(positions))
    return tuple(int(positions[n * len(positions) // count]) for n in range(count))


def draw(rows: Sequence[Row], image_of: Callable[[int], np.ndarray | None]) -> Image.Image:
    """Draws a sheet.

    Args:
      rows: its rows.
      image_of: returns the image [H, W, 1, 3 or 4] uint8 at a position; None leaves a gap.
    """
    captions = (TEXT + GAP) * sum(bool(row.caption) for row in rows)
    height = len(rows) * (CELL + GAP) + captions + GAP
    sheet = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, height), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT), GAP
    for row in rows:
        if row.caption:
            pen.text((GAP, top - 2), row.caption, "black", font)
            top += TEXT + GAP
        for column, position in enumerate(row.pictures):
            image = image_of(position)
            if image is not None:
                tile = _tile(image)
                left = GAP + column * (CELL + GAP) + (CELL - tile.width) // 2
                sheet.paste(tile, (left, top + (CELL - tile.height) // 2))
        top += CELL + GAP
    return sheet


def _tile(image: np.ndarray) -> Image.Image:
    """Fits an image into a cell; small ones are enlarged pixel by pixel."""
    height, width, channels = image.shape
    picture = Image.fromarray(image[..., 0] if channels == 1 else image).convert("RGB")
    if channels == 4:  # the colours are premultiplied by alpha, so this is the picture on white
        white = 255 - image[..., 3:].astype(np.int32)
        picture = Image.fromarray(np.minimum(255, image[..., :3] + white).astype(np.uint8))
    longer = max(height, width)
    if longer <= CELL:
        factor = CELL // longer
        return picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return picture


def save(sheet: Image.Image, path: Path) -> None:
    """Writes a sheet as PNG.

    Raises:
      OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as scratch:
        sheet.save(scratch, "PNG")
