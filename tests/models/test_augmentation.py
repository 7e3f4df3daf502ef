"""Augmentation: published results number by number, gradients, and draws by position."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import tensorflow as tf

from trainer import recipes
from trainer.config import augment_policy
from trainer.errors import UsageError
from trainer.models import ada, affine, augmentation, diffaugment
from trainer.models.randomness import Draws

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden/augment.npz"))


def images(name: str) -> np.ndarray:
    """Returns golden images as [N, H, W, C]."""
    return GOLDEN[name].transpose(0, 2, 3, 1)


def assert_near(actual, expected, bound=1e-5):
    """Asserts that arrays differ by at most `bound` times the largest value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", "color+translation+cutout"])
def test_diffaugment_has_the_published_results(policy):
    recorded = {
        name.split("/")[2]: tf.cast(value, tf.float32)
        for name, value in GOLDEN.items()
        if name.startswith(f"diffaugment/{policy}/")
    }
    actual = tf.constant(images("diffaugment/in"))
    if "color" in policy:
        factors = (recorded[f"u_{name}"] for name in diffaugment.NUMBERS["color"])
        actual = diffaugment.recolour(actual, *factors)
    if "translation" in policy:
        actual = diffaugment.translate(actual, recorded["shift_rows"], recorded["shift_cols"])
    if "cutout" in policy:
        actual = diffaugment.cut_out(actual, recorded["offset_rows"], recorded["offset_cols"])
    assert_near(actual, images(f"diffaugment/{policy}/out"))


FORCED = [
    name.removeprefix("ada/").removesuffix("/out")
    for name in GOLDEN
    if "@" in name and name.endswith("/out")
]


@pytest.mark.parametrize("case", FORCED)
def test_each_transformation_of_ada_has_the_published_results(case):
    name, _, percentile = case.partition("@")
    # The recorded numbers follow erfinv(2q - 1), without the factor sqrt(2) of a quantile.
    normal = NormalDist().inv_cdf(float(percentile)) / np.sqrt(2.0)
    values = ada.values_of(
        gates=tf.constant([[0.0 if gate != "rotate_after" else 1.0 for gate in ada.GATES]] * 2),
        uniform=tf.fill([2, len(ada.UNIFORM)], float(percentile)),
        normal=tf.fill([2, len(ada.NORMAL)], float(normal)),
        factors={name: 1.0},
        strength=0.999,
    )
    actual = ada.transform(tf.constant(images("ada/in")[:2]), {name: 1.0}, values)
    assert_near(actual, images(f"ada/{case}/out"))
    if f"ada/{case}/G_inv" in GOLDEN:
        assert_near(ada.geometry(values, 32, 32), GOLDEN[f"ada/{case}/G_inv"][:, :2], 1e-6)


POLICIES = {
    "bgc_p1": "blit,geometry,color",
    "bgc_p0.6": "blit,geometry,color",
    "r3gan_p0.8": "blit,geometry,color:0.5,cutout",
}


def recorded_values(case: str, factors: dict[str, float]) -> ada.Values:
    """Returns the values that follow from the recorded draws of a golden case."""

    def draw(name: str, kind: str) -> np.ndarray:
        axis = name[-1] if name.endswith(("_x", "_y")) else ""
        name = name.removesuffix("_x").removesuffix("_y")
        name = name.replace("before", "pre").replace("after", "post")
        kind = "center" if (name, kind) == ("cutout", "value") else kind
        found = GOLDEN.get(f"ada/{case}/draw/{name}/{kind}", np.zeros([4, 2], np.float32))
        return found.reshape(4, -1)[:, 1 if axis == "y" else 0]

    gates = [draw(name, "gate") for name in ada.GATES]
    return ada.values_of(
        tf.stack(gates, 1),
        tf.stack([draw(name, "value") for name in ada.UNIFORM], 1),
        tf.stack([draw(name, "value") for name in ada.NORMAL], 1),
        factors,
        float(GOLDEN[f"ada/{case}/p"]),
    )


@pytest.mark.parametrize("case", POLICIES)
def test_policies_of_ada_have_the_published_results_and_gradients(case):
    factors = augment_policy.parse("ada", POLICIES[case])
    values = recorded_values(case, factors)
    batch = tf.constant(images("ada/in"))
    with tf.GradientTape() as tape:
        tape.watch(batch)
        actual = ada.transform(batch, factors, values)
        in_order = tf.transpose(actual, [0, 3, 1, 2])
        places = np.arange(in_order.shape.num_elements(), dtype=np.float32)
        weights = np.cos(np.float32(0.37) * places)  # in float32, as in the source
        total = tf.reduce_sum(tf.reshape(weights, in_order.shape) * in_order)
    assert_near(ada.geometry(values, 32, 32), GOLDEN[f"ada/{case}/G_inv"][:, :2], 1e-6)
    assert_near(actual, images(f"ada/{case}/out"))
    if f"ada/{case}/grad_of_sum(w*out)" in GOLDEN:
        gradient = tape.gradient(total, batch)
        assert_near(gradient, images(f"ada/{case}/grad_of_sum(w*out)"))


def test_the_filter_and_the_identity():
    np.testing.assert_allclose(affine.SYM6, GOLDEN["ada/const/Hz_geom"], atol=1e-7)
    batch = tf.constant(images("ada/in"))
    identity = tf.constant([[[1.0, 0, 0], [0, 1.0, 0]]] * 4)
    assert_near(affine.transform(batch, identity), batch, 2e-6)


@pytest.mark.parametrize(
    ("augment", "policy"),
    [("diffaugment", "color,translation,cutout"), ("ada", "blit,geometry,color,cutout")],
)
def test_augmentation_depends_on_the_position_only_and_has_exact_second_derivatives(
    augment, policy
):
    config = recipes.resolve(dict(augment=augment, augment_policy=policy))
    batch = tf.constant(np.concatenate([images("ada/in"), images("diffaugment/in")])[:, ::2, ::2])
    draws = Draws(seed=3, step=5, batch_size=4, rows=4)
    whole = augmentation.augment(config, batch, draws, 0.8)
    for row in range(4):  # a replica or a micro-batch of one row of two concatenated batches
        part = tf.stack([batch[row], batch[4 + row]])
        alone = augmentation.augment(config, part, draws.part(row, 1), 0.8)
        np.testing.assert_allclose(alone[0], whole[row], atol=1e-5)
        np.testing.assert_allclose(alone[1], whole[4 + row], atol=1e-5)
    other = augmentation.augment(config, batch, draws.within("g"), 0.8)
    assert np.abs(whole - other).max() > 0.1

    def penalty(images: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        """Returns the squared gradient of a quadratic discriminator of augmented images."""
        with tf.GradientTape() as tape:
            tape.watch(images)
            seen = augmentation.augment(config, images, draws, 0.8)
            logits = tf.reduce_sum(weight * seen + 0.5 * tf.square(seen))
        return tf.reduce_sum(tf.square(tape.gradient(logits, images)))

    direction = tf.constant(np.random.default_rng(0).normal(size=batch.shape), tf.float32)
    for k in (0, 1):  # with respect to the images and to the weights
        at = [batch, tf.ones_like(batch)]
        with tf.GradientTape() as tape:
            tape.watch(at[k])
            total = penalty(*at)
        slope = float(tf.reduce_sum(tape.gradient(total, at[k]) * direction))
        up, down = ([*at[:k], at[k] + h * direction, *at[k + 1 :]] for h in (0.05, -0.05))
        # The penalty is quadratic in both, so the difference quotient is exact.
        assert slope == pytest.approx(float(penalty(*up) - penalty(*down)) / 0.1, rel=2e-3)


def test_images_from_0_to_1_are_augmented_alike():
    config = recipes.resolve(dict(augment="ada", augment_policy="blit,geometry,color"))
    draws = Draws(seed=3, step=5, batch_size=4, rows=4)
    expected = augmentation.augment(config, images("ada/in"), draws, 1.0)
    actual = augmentation.augment(
        config.replace(image_range="sigmoid"), 0.5 + 0.5 * images("ada/in"), draws, 1.0
    )
    np.testing.assert_allclose(actual, 0.5 + 0.5 * expected, atol=1e-5)


def test_strength_zero_changes_nothing_and_probabilities_are_met():
    batch = tf.constant(np.tile(images("ada/in")[:1, :8, :8], [2000, 1, 1, 1]))
    draws = Draws(seed=0, step=0, batch_size=2000)
    for augment, policy in augment_policy.DEFAULT_POLICIES.items():
        if augment != "none":
            config = recipes.resolve(dict(augment=augment, augment_policy=policy))
            np.testing.assert_allclose(
                augmentation.augment(config, batch[:4], draws.part(0, 4), 0.0), batch[:4], atol=3e-6
            )
    factors = {"lumaflip": 0.5, "rotate": 1.0}
    values = ada.values_of(
        tf.random.stateless_uniform([2000, len(ada.GATES)], [1, 2]),
        tf.fill([2000, len(ada.UNIFORM)], 0.9),
        tf.ones([2000, len(ada.NORMAL)]),
        factors,
        0.6,
    )
    assert np.mean(values["lumaflip"] > 0) == pytest.approx(0.3, abs=0.04)
    before, after = (values[f"rotate_{k}"] != 0.5 for k in ("before", "after"))
    assert np.mean(before | after) == pytest.approx(0.6, abs=0.04)
    assert not np.any(values["xflip"])
    assert not np.any(values["scale"])


@pytest.mark.parametrize(
    ("augment", "policy", "message"),
    [
        (
            "ada",
            "blit,xflp",
            "--augment_policy=blit,xflp: 'xflp' is not known. Did you mean xflip?",
        ),
        ("ada", "blit:2", "--augment_policy=blit:2 is not valid at 'blit:2'. Write NAME or NAME:F"),
        ("ada", "blit:x", "is not valid at 'blit:x'"),
        ("ada", "blit:0", "--augment_policy=blit:0 has no transformation. Use --augment=none"),
        ("none", "blit", "--augment_policy='blit' needs an augmentation. Add --augment="),
    ],
)
def test_policies_that_are_wrong_are_named(augment, policy, message):
    with pytest.raises(UsageError) as error:
        augment_policy.parse(augment, policy)
    assert message in str(error.value)
    assert augment_policy.parse("ada", "blit, xflip:0") == {"rotate90": 1.0, "xint": 1.0}
