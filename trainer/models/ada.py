"""The transformations of adaptive discriminator augmentation (ADA), differentiable in the images.

Karras et al., arXiv:2006.06676, appendix B.  Images are [N, H, W, C] float32 in [-1, 1].
"""

import math
from collections.abc import Mapping

import tensorflow as tf

from trainer.models import affine
from trainer.models.pixels import colours_of, with_alpha_of
from trainer.models.randomness import Draws

GEOMETRY = ("xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac")
COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")

# Each transformation is applied where its gate, a uniform number, is below its probability.
GATES = (
    "xflip", "rotate90", "xint", "scale", "rotate_before", "aniso", "rotate_after", "xfrac",
    *COLOR, "cutout",
)  # fmt: skip
UNIFORM = (
    "xflip", "rotate90", "xint_x", "xint_y", "rotate_before", "rotate_after", "lumaflip", "hue",
    "cutout_x", "cutout_y",
)  # fmt: skip
NORMAL = ("scale", "aniso", "xfrac_x", "xfrac_y", "brightness", "contrast", "saturation")

Values = Mapping[str, tf.Tensor]  # [N] float32 each


def augment(
    images: tf.Tensor, factors: Mapping[str, float], draws: Draws, strength: tf.Tensor | float
) -> tf.Tensor:
    """Applies each transformation to an image with the probability of its factor times strength.

    Args:
      images: the images of one batch or of several batches after each other.
      factors: factor of the probability by transformation, for those that are enabled.
      draws: random numbers of the rows of a batch.
      strength: a scalar.
    """
    parts = images.shape[0] // draws.rows
    uniform = draws.uniform("ada_uniform", (len(GATES) + len(UNIFORM),), parts)
    normal = draws.normal("ada_normal", (len(NORMAL),), parts)
    gates, uniform = uniform[:, : len(GATES)], uniform[:, len(GATES) :]
    return transform(images, factors, values_of(gates, uniform, normal, factors, strength))


def values_of(
    gates: tf.Tensor,
    uniform: tf.Tensor,
    normal: tf.Tensor,
    factors: Mapping[str, float],
    strength: tf.Tensor | float,
) -> Values:
    """Returns a number for each name of UNIFORM and NORMAL, and 0 or 1 for "cutout".

    Where a transformation is not applied, its number is the one that changes nothing.

    Args:
      gates: [N, len(GATES)].
      uniform: [N, len(UNIFORM)] in [0, 1).
      normal: [N, len(NORMAL)].
      factors, strength: as in `augment`.
    """
    chances = [
        factors.get(name.removesuffix("_before").removesuffix("_after"), 0.0) for name in GATES
    ]
    chance = tf.minimum(tf.constant(chances) * strength, 1.0)
    # A rotation before and one after the stretching: together they have the probability.
    rotates = tf.constant([name.startswith("rotate_") for name in GATES])
    chance = tf.where(rotates, 1.0 - tf.sqrt(1.0 - chance), chance)
    applied = dict(zip(GATES, tf.unstack(gates < chance, axis=1), strict=True))

    def of(name: str) -> tf.Tensor:
        return applied[name.removesuffix("_x").removesuffix("_y")]

    values = {}
    for name, value in zip(UNIFORM, tf.unstack(uniform, axis=1), strict=True):
        unchanged = 0.5 if name.startswith(("xint", "rotate_", "hue")) else 0.0
        values[name] = tf.where(of(name), value, unchanged)
    for name, value in zip(NORMAL, tf.unstack(normal, axis=1), strict=True):
        values[name] = tf.where(of(name), value, 0.0)
    values["cutout"] = tf.cast(applied["cutout"], tf.float32)
    return values


def transform(images: tf.Tensor, factors: Mapping[str, float], values: Values) -> tf.Tensor:
    """Applies the enabled kinds of transformations: geometry, then colour, then cutout."""
    if any(name in factors for name in GEOMETRY):
        images = affine.transform(images, geometry(values, images.shape[1], images.shape[2]))
    if any(name in factors for name in COLOR):
        images = with_alpha_of(images, recolour(colours_of(images), values))
    if "cutout" in factors:
        images = cut_out(images, values)
    return images


def geometry(values: Values, height: int, width: int) -> tf.Tensor:
    """Returns the matrix [N, 2, 3] from positions in the result to positions in the image.

    It is the product, from the left, of: flip; turn by multiples of 90 degrees; shift by whole
    pixels; scaling; rotation; stretching; rotation; shift.
    """
    flip = 1.0 - 2.0 * tf.floor(2.0 * values["xflip"])
    quarter = (math.pi / 2) * tf.floor(4.0 * values["rotate90"])
    turn_cos, turn_sin = tf.cos(quarter), tf.sin(quarter)
    whole_x = -tf.round((2.0 * values["xint_x"] - 1.0) / 8.0 * width)
    whole_y = -tf.round((2.0 * values["xint_y"] - 1.0) / 8.0 * height)
    scale, stretch = tf.pow(2.0, 0.2 * values["scale"]), tf.pow(2.0, 0.2 * values["aniso"])
    along_x, along_y = 1.0 / (scale * stretch), stretch / scale
    before = quarter + math.pi * (2.0 * values["rotate_before"] - 1.0)
    after = math.pi * (2.0 * values["rotate_after"] - 1.0)
    shift_x, shift_y = -values["xfrac_x"] / 8.0 * width, -values["xfrac_y"] / 8.0 * height

    # R(before) diag(along_x, along_y) R(after)
    xx, xy = tf.cos(before) * along_x, -tf.sin(before) * along_y
    yx, yy = tf.sin(before) * along_x, tf.cos(before) * along_y
    after_cos, after_sin = tf.cos(after), tf.sin(after)
    xx, xy = xx * after_cos + xy * after_sin, xy * after_cos - xx * after_sin
    yx, yy = yx * after_cos + yy * after_sin, yy * after_cos - yx * after_sin
    moved_x = xx * shift_x + xy * shift_y + turn_cos * whole_x - turn_sin * whole_y
    moved_y = yx * shift_x + yy * shift_y + turn_sin * whole_x + turn_cos * whole_y
    entries = [flip * xx, flip * xy, flip * moved_x, yx, yy, moved_y]
    return tf.reshape(tf.stack(entries, 1), [-1, 2, 3])


def color(values: Values) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns what becomes of the brightness and of the colour of a pixel.

    All transformations of colour commute but for the change of brightness, which comes first.
    They scale the part of a pixel along the gray axis, and scale and rotate the part across it.

    Returns:
      The factor of the gray part; what is added to it; the factor of the other part; and the
      angle by which it is rotated, [N] each.
    """
    contrast = tf.pow(2.0, 0.5 * values["contrast"])
    gray = contrast * (1.0 - 2.0 * tf.floor(2.0 * values["lumaflip"]))
    added = gray * 0.2 * values["brightness"]
    across = contrast * tf.pow(2.0, values["saturation"])
    return gray, added, across, math.pi * (2.0 * values["hue"] - 1.0)


def recolour(images: tf.Tensor, values: Values) -> tf.Tensor:
    """Changes brightness, contrast and, in colour images, hue and saturation."""
    gray, added, across, angle = color(values)
    if images.shape[3] == 1:
        return images * gray[:, None, None, None] + added[:, None, None, None]
    # The matrix gray P + across (cos(angle) (I - P) + sin(angle) K), with P = v v^T, K u = v x u
    # and v = (1, 1, 1) / sqrt(3), has only three different entries.
    cosine, sine = across * tf.cos(angle), across * tf.sin(angle) / math.sqrt(3.0)
    same = (gray + 2.0 * cosine) / 3.0
    next_, previous = (gray - cosine) / 3.0 - sine, (gray - cosine) / 3.0 + sine
    rows = [[same, next_, previous], [previous, same, next_], [next_, previous, same]]
    matrix = tf.stack([tf.stack(row, 1) for row in rows], 1)[:, None, None]
    mixed = tf.reduce_sum(matrix * images[..., None, :], -1)
    return mixed + added[:, None, None, None]


def cut_out(images: tf.Tensor, values: Values) -> tf.Tensor:
    """Sets a part of half the height and width to zero in the images whose value "cutout" is 1."""

    def near(centre: tf.Tensor, size: int) -> tf.Tensor:
        places = (tf.range(size, dtype=tf.float32) + 0.5) / size
        return tf.abs(places - centre[:, None]) < 0.25 * values["cutout"][:, None]

    in_cols = near(values["cutout_x"], images.shape[2])[:, None, :]
    in_rows = near(values["cutout_y"], images.shape[1])[:, :, None]
    return images * tf.cast(~(in_rows & in_cols), images.dtype)[..., None]
