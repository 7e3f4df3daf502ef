"""Pictures of nearest neighbours and of confusion matrices."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainer.data.form import convert
from trainer.generation.sampler import grid

GAP = 6  # pixels between a sample and its neighbours
MAX_CLASSES = 40  # a confusion matrix shows the first classes only if there are more
CELL = 34  # width and height of a cell in pixels
TEXT = 12  # font size in pixels
INK, PAPER, LIGHT = (20, 20, 20), (255, 255, 255), (235, 235, 235)
FULL = np.array([33, 82, 140])  # colour of a cell with 100%


def neighbours(samples: np.ndarray, reals: np.ndarray) -> Image.Image:
    """Draws a row for each sample: the sample and the real images nearest to it, on white.

    Args:
      samples: [N, H, W, C] uint8.
      reals: [N, K, H, W, C] uint8, nearest first.
    """
    left = convert(enlarge(grid(samples, 1)), 3)
    right = convert(enlarge(grid(reals.reshape(-1, *reals.shape[2:]), reals.shape[1])), 3)
    picture = Image.new("RGB", (left.width + GAP + right.width, left.height), PAPER)
    picture.paste(left, (0, 0))
    picture.paste(right, (left.width + GAP, 0))
    return picture


def enlarge(picture: Image.Image) -> Image.Image:
    """Returns a picture of twice the width and height."""
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)


def confusion(counts: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Draws a confusion matrix of requested classes (rows) and predicted classes (columns).

    Each cell shows its share of the row in percent.  The accuracy of a class is to the
    right of its row.

    Args:
      counts: [K, K] int, number of images by requested and predicted class.
      names: names of the classes.
    """
    shown = min(len(counts), MAX_CLASSES)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    font = ImageFont.load_default(TEXT)
    labels = [name if len(name) <= 12 else f"{name[:11]}." for name in names[:shown]]
    margin = 16 + max(int(font.getlength(label)) for label in labels)
    top = 3 * TEXT + 16
    accuracy = np.trace(counts) / max(1, counts.sum())
    title = f"rows: requested, columns: predicted (% of row), accuracy: {accuracy:.1%}"
    width = max(margin + CELL * shown + 70, 16 + math.ceil(font.getlength(title)))
    picture = Image.new("RGB", (width, top + CELL * shown + 10), PAPER)
    draw = ImageDraw.Draw(picture)
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
    """Draws a cell: darker for a larger share, and without text for less than half a percent."""
    strength = share**0.5  # makes a few percent visible
    colour = tuple(int(c) for c in 255 + strength * (FULL - 255))
    draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=colour, outline=LIGHT)
    if share >= 0.005:
        ink = PAPER if strength > 0.6 else INK
        middle = (left + CELL // 2, top + CELL // 2)
        draw.text(middle, f"{100 * share:.0f}", ink, font, anchor="mm")
