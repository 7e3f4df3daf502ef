"""The augmentations with the draws of a published implementation."""

import re
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import tensorflow as tf

from benchmarks.golden.arrays import Golden
from trainer.config import augment_policy
from trainer.models import ada, affine, diffaugment

MATRIX = 1e-6  # bound of the differences of matrices
# Policies that a file names by what follows ada/.
POLICIES = {
    "bgc_p1": "blit,geometry,color",
    "bgc_p0.6": "blit,geometry,color",
    "r3gan_p0.8": "blit,geometry,color:0.5,cutout",
}
INPUTS = ("diffaugment/in", "ada/in")


def kinds(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the prefixes of the augmentations that `compare` can compare."""
    found = re.compile(rf"(.*?)({'|'.join(INPUTS)})")
    return sorted({match[1] for name in arrays if (match := found.fullmatch(name))})


def compare(golden: Golden) -> None:
    """Compares augmented images, their gradients, and the matrices of transformations."""
    if "ada/const/Hz_geom" in golden:
        golden.compare("ada/const/Hz_geom", affine.SYM6)
    for policy in _cases(golden, "diffaugment/"):
        _compare_diffaugment(golden, policy)
    for case in _cases(golden, "ada/"):
        if "@" in case:
            _compare_forced(golden, case)
        elif case in POLICIES:
            _compare_policy(golden, case, augment_policy.parse("ada", POLICIES[case]))


def _cases(golden: Golden, start: str) -> list[str]:
    return [name.removesuffix("/out") for name in golden.names(start) if name.endswith("/out")]


def _compare_diffaugment(golden: Golden, policy: str) -> None:
    def drawn(name: str) -> tf.Tensor:
        return tf.cast(golden.shaped(f"diffaugment/{policy}/{name}", "N"), tf.float32)

    actual = golden.images("diffaugment/in")
    if "color" in policy:
        factors = (drawn(f"u_{name}") for name in diffaugment.NUMBERS["color"])
        actual = diffaugment.recolour(actual, *factors)
    if "translation" in policy:
        actual = diffaugment.translate(actual, drawn("shift_rows"), drawn("shift_cols"))
    if "cutout" in policy:
        actual = diffaugment.cut_out(actual, drawn("offset_rows"), drawn("offset_cols"))
    golden.compare_images(f"diffaugment/{policy}/out", actual)


def _compare_forced(golden: Golden, case: str) -> None:
    """Compares one transformation of all images, whose draws are at a percentile."""
    name, _, percentile = case.partition("@")
    batch = golden.images("ada/in")[: len(golden[f"ada/{case}/out"])]
    # The recorded numbers follow erfinv(2q - 1), without the factor sqrt(2) of a quantile.
    normal = NormalDist().inv_cdf(float(percentile)) / np.sqrt(2.0)
    gates = [0.0 if gate != "rotate_after" else 1.0 for gate in ada.GATES]
    values = ada.values_of(
        gates=tf.constant([gates] * len(batch)),
        uniform=tf.fill([len(batch), len(ada.UNIFORM)], float(percentile)),
        normal=tf.fill([len(batch), len(ada.NORMAL)], float(normal)),
        factors={name: 1.0},
        strength=0.999,
    )
    actual = ada.transform(batch, {name: 1.0}, values)
    golden.compare_images(f"ada/{case}/out", actual)
    _compare_matrix(golden, case, values)


def _compare_policy(golden: Golden, case: str, factors: dict[str, float]) -> None:
    """Compares a policy with the draws of the file."""
    batch = golden.images("ada/in")
    values = _recorded_values(golden, case, factors, len(batch))
    with tf.GradientTape() as tape:
        tape.watch(batch)
        actual = ada.transform(batch, factors, values)
        in_order = tf.transpose(actual, [0, 3, 1, 2])
        places = np.arange(in_order.shape.num_elements(), dtype=np.float32)
        weights = np.cos(np.float32(0.37) * places)  # in float32, as in the source
        total = tf.reduce_sum(tf.reshape(weights, in_order.shape) * in_order)
    golden.compare_images(f"ada/{case}/out", actual)
    golden.compare_images(f"ada/{case}/grad_of_sum(w*out)", tape.gradient(total, batch))
    _compare_matrix(golden, case, values)


def _compare_matrix(golden: Golden, case: str, values: ada.Values) -> None:
    """Compares the inverse of the geometric transformation, [N, 3, 3]."""
    height, width = golden.images("ada/in").shape[1:3]
    ours = np.asarray(ada.geometry(values, height, width))
    last = np.tile(np.array([[[0, 0, 1]]], np.float32), [len(ours), 1, 1])
    golden.compare(f"ada/{case}/G_inv", np.concatenate([ours, last], axis=1), MATRIX)


def _recorded_values(
    golden: Golden, case: str, factors: dict[str, float], count: int
) -> ada.Values:
    """Returns the values that follow from the draws of the file."""

    def draw(name: str, kind: str) -> np.ndarray:
        axis = name[-1] if name.endswith(("_x", "_y")) else ""
        name = name.removesuffix("_x").removesuffix("_y")
        name = name.replace("before", "pre").replace("after", "post")
        kind = "center" if (name, kind) == ("cutout", "value") else kind
        full = f"ada/{case}/draw/{name}/{kind}"
        found = golden[full] if full in golden else np.zeros([count, 2], np.float32)
        return found.reshape(count, -1)[:, 1 if axis == "y" else 0]

    return ada.values_of(
        tf.stack([draw(name, "gate") for name in ada.GATES], 1),
        tf.stack([draw(name, "value") for name in ada.UNIFORM], 1),
        tf.stack([draw(name, "value") for name in ada.NORMAL], 1),
        factors,
        float(golden[f"ada/{case}/p"]),
    )
