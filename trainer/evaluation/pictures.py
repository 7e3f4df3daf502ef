"""Pictures of quality: nearest neighbours, confusion of classes, interpolation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainer.generation.sampler import grid

GAP = 6  # pixels between a sample and its neighbours
MAX_CLASSES = 40  # of a confusion picture; of more classes the first are shown
CELL = 34  # pixels of a cell, its text included
TEXT = 12  # pixels of letters
INK, PAPER, LIGHT = (20, 20, 20), (255, 255, 255), (235, 235, 235)
FULL = np.array([33, 82, 140])  # the colour of a cell that holds all


def neighbours(samples: np.ndarray, reals: np.ndarray) -> Image.Image:
    """A row for each sample: itself, then the reals nearest to it.

    Args:
      samples: [N, H, W, C] uint8.
      reals: [N, K, H, W, C] uint8, nearest first.
    """
    left = enlarge(grid(samples, 1))
    right = enlarge(grid(reals.reshape(-1, *reals.shape[2:]), reals.shape[1]))
    picture = Image.new("RGB", (left.width + GAP + right.width, left.height), PAPER)
    picture.paste(left.convert("RGB"), (0, 0))
    picture.paste(right.convert("RGB"), (left.width + GAP, 0))
    return picture


def enlarge(picture: Image.Image) -> Image.Image:
    """Doubles a picture's pixels."""
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)


def confusion(counts: np.ndarray, names: Sequence[str]) -> Image.Image:
    """A table of which class was asked for (rows) and seen by the classifier (columns).

    Cells are percent of a row; at the right of each row is its accuracy, which is that of
    the class.

    Args:
      counts: [K, K] int, images by class asked for and class seen.
      names: of the classes.
    """
    shown = min(len(counts), MAX_CLASSES)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    font = ImageFont.load_default(TEXT)
    labels = [name if len(name) <= 12 else f"{name[:11]}." for name in names[:shown]]
    margin = 16 + max(int(font.getlength(label)) for label in labels)
    top = 3 * TEXT + 16
    width, height = margin + CELL * shown + 70, top + CELL * shown + 10
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    right = np.trace(counts) / max(1, counts.sum())
    title = f"rows: asked for; columns: seen (% of the row); right: {right:.1%}"
    draw.text((8, 6), title, INK, font)
    for k, label in enumerate(labels):
        middle = top + CELL * k + CELL // 2
        draw.text((margin - 8, middle), label, INK, font, anchor="rm")
        short = label if len(label) <= 5 else label[:4] + "."
        draw.text((margin + CELL * k + CELL // 2, top - 4), short, INK, font, anchor="mb")
        right_of = (margin + CELL * shown + 8, middle)
        draw.text(right_of, f"{shares[k, k]:.1%}", INK, font, anchor="lm")
    for row in range(shown):
        for column in range(shown):
            _cell(draw, font, margin + CELL * column, top + CELL * row, shares[row, column])
    return picture


def _cell(draw: ImageDraw.ImageDraw, font: Any, left: int, top: int, share: float) -> None:
    """Draws a cell, the darker the larger its share; shares under half a percent are empty."""
    strength = share**0.5  # so that a few percent can be seen
    colour = tuple(int(c) for c in 255 + strength * (FULL - 255))
    draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=colour, outline=LIGHT)
    if share >= 0.005:
        ink = PAPER if strength > 0.6 else INK
        middle = (left + CELL // 2, top + CELL // 2)
        draw.text(middle, f"{100 * share:.0f}", ink, font, anchor="mm")
