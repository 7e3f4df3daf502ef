"""The metrics against closed forms, independent implementations and invariances."""

import numpy as np
import pytest

from trainer.metrics import distances, neighbours, registry
from trainer.metrics.distances import class_fids, fid, inception_score, kid
from trainer.metrics.moments import Moments
from trainer.metrics.neighbours import manifold, radii


def draw(count, size, seed=0, mean=0.0, spread=1.0):
    return mean + spread * np.random.default_rng(seed).normal(size=(count, size))


def gaussian(mean, covariance, count=1000):
    moments = Moments(len(mean))
    moments.count, moments.mean = count, np.asarray(mean, float)
    moments.scatter = np.asarray(covariance, float) * (count - 1)
    return moments


def rotation(size, seed=5):
    return np.linalg.qr(draw(size, size, seed))[0]


def test_moments_equal_those_of_numpy_for_every_batch_size():
    features = draw(1000, 7, mean=1e6)
    for size in (1, 3, 999, 1000):
        moments = Moments(7)
        for start in range(0, 1000, size):
            moments.add(features[start : start + size])
        np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-14)
        np.testing.assert_allclose(moments.covariance, np.cov(features.T), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        Moments.of(features.astype(np.float32)).mean, features.mean(0), rtol=1e-6
    )
    with pytest.raises(ValueError, match="2 or more features, not 1"):
        _ = Moments.of(features[:1]).covariance


def test_fid_of_gaussians_in_closed_form():
    # For N(m, diag s^2) and N(n, diag t^2) it is |m - n|^2 + |s - t|^2.
    m, s = np.array([1.0, -2.0, 0.5]), np.array([1.0, 2.0, 0.1])
    n, t = np.array([0.0, 1.0, 0.5]), np.array([3.0, 0.0, 0.1])
    expected = ((m - n) ** 2).sum() + ((s - t) ** 2).sum()
    first, second = gaussian(m, np.diag(s**2)), gaussian(n, np.diag(t**2))
    assert fid(first, second) == pytest.approx(expected, rel=1e-12)
    assert fid(second, first) == pytest.approx(expected, rel=1e-12)
    rotated = [gaussian(rotation(3) @ g.mean, rotation(3) @ g.covariance @ rotation(3).T)
              for g in (first, second)]  # fmt: skip
    assert fid(*rotated) == pytest.approx(expected, rel=1e-7)  # the square root amplifies rounding
    assert fid(first, first) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("count", [400, 12])  # 12 features of 32 dimensions have a low rank
def test_fid_equals_that_with_a_matrix_root_of_scipy(count):
    linalg = pytest.importorskip("scipy.linalg")
    mix = draw(32, 32, 2)
    first, second = draw(count, 32, 0) @ mix, draw(count + 5, 32, 1, mean=0.3) @ mix
    c1, c2 = np.cov(first.T), np.cov(second.T)
    small = 0.0 if count > 32 else 1e-9  # sqrtm of SciPy needs full rank
    root = linalg.sqrtm((c1 + small * np.eye(32)) @ (c2 + small * np.eye(32)))
    step = first.mean(0) - second.mean(0)
    expected = step @ step + np.trace(c1 + c2 - 2 * np.real(root))
    tolerance = 1e-9 if count > 32 else 1e-3
    assert fid(Moments.of(first), Moments.of(second)) == pytest.approx(expected, rel=tolerance)


def test_fid_of_identical_images_is_finite():
    same = Moments.of(np.ones((50, 8)))
    assert fid(same, same) == 0.0
    other = Moments.of(draw(50, 8))
    expected = ((other.mean - 1) ** 2).sum() + np.trace(other.covariance)
    assert fid(same, other) == pytest.approx(expected, rel=1e-12)


def test_fid_is_independent_of_order_and_scales_quadratically():
    first, second = draw(300, 6, 0), draw(300, 6, 1, mean=1.0)
    value = fid(Moments.of(first), Moments.of(second))
    assert fid(Moments.of(first[::-1]), Moments.of(second)) == pytest.approx(value, rel=1e-10)
    assert fid(Moments.of(3 * first + 7), Moments.of(3 * second + 7)) == pytest.approx(9 * value)


def test_kid_equals_the_sum_over_pairs():
    first, second = draw(6, 3, 0), draw(6, 3, 1, mean=1.0)

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    def expected(x, y):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
        within = np.mean([k(x[i], x[j]) for i, j in pairs])
        within += np.mean([k(y[i], y[j]) for i, j in pairs])
        return within - 2 * np.mean([k(a, b) for a in x for b in y])

    # A subset has half the images of its set.
    values = []
    generator = np.random.default_rng(4)
    for _ in range(20):
        x = first[generator.choice(6, 3, replace=False)]
        y = second[generator.choice(6, 3, replace=False)]
        values.append(expected(x, y))
    mean, spread = kid(first, second, seed=4, subsets=20)
    assert mean == pytest.approx(np.mean(values), rel=1e-12)
    assert spread == pytest.approx(np.std(values), rel=1e-9)


def test_kid_is_unbiased():
    """For two sets of one distribution it is 0 within its spread, even for small sets."""
    for count in (20, 200):
        values = [
            kid(draw(count, 4, 2 * n), draw(count, 4, 2 * n + 1), subsets=5)[0] for n in range(60)
        ]
        assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(60)
        assert min(values) < 0 < max(values)
    assert kid(draw(500, 4), draw(500, 4, 1, mean=1.0))[0] > 1.0
    with pytest.raises(ValueError, match="4 or more features"):
        kid(draw(3, 4), draw(500, 4))


def test_inception_score_lies_between_one_and_the_number_of_classes():
    certain = 100.0 * np.eye(10)[np.arange(1000) % 10]
    assert inception_score(certain)[0] == pytest.approx(10.0)
    assert inception_score(np.zeros((1000, 10))) == pytest.approx((1.0, 0.0))
    assert inception_score(100.0 * np.eye(10)[np.zeros(1000, int)])[0] == pytest.approx(1.0)
    # All images have the same probabilities, so the KL divergence to the marginal is 0.
    half = np.log(np.array([[0.5, 0.5, 1e-300]] * 100))
    assert inception_score(half, splits=1)[0] == pytest.approx(1.0)
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    marginal = p.mean(0)
    expected = np.exp((p * np.log(p / marginal)).sum(1).mean())
    assert inception_score(np.log(p) + 5.0, splits=1)[0] == pytest.approx(expected)
    with pytest.raises(ValueError, match="cannot be split into 10 parts"):
        inception_score(certain[:9])


def test_conditional_accuracy_and_confusion():
    logits = np.eye(3)[[0, 1, 1, 2]]
    labels = np.array([0, 1, 2, 2])
    assert distances.conditional_accuracy(logits, labels) == 0.75
    np.testing.assert_array_equal(
        distances.confusion(logits, labels), [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    )


def test_class_fids_need_enough_images():
    first, second = draw(90, 4, 0), draw(90, 4, 1)
    labels = np.repeat([0, 1, 2], [50, 37, 3])
    second[labels == 1] += 2.0
    values = class_fids(first, labels, second, labels, 4)
    assert values.keys() == {0, 1}
    assert values[1] > values[0] + 10
    assert values[0] == pytest.approx(fid(Moments.of(first[:50]), Moments.of(second[:50])))


def test_radii_equal_those_of_scikit_learn(monkeypatch):
    sklearn = pytest.importorskip("sklearn.neighbors")
    features = draw(200, 5)
    near = sklearn.NearestNeighbors(n_neighbors=6).fit(features)
    expected = (
        near.kneighbors(features)[0][:, [3, 5]].T ** 2
    )  # the first neighbour is the image itself
    np.testing.assert_allclose(radii(features, (3, 5)), expected, rtol=1e-9)
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 8 * 200 * 7)  # blocks of 7 rows
    np.testing.assert_allclose(radii(features, (3, 5)), expected, rtol=1e-9)


@pytest.mark.parametrize("float32", [False, True])
def test_manifold_equals_that_of_scikit_learn(monkeypatch, float32):
    sklearn = pytest.importorskip("sklearn.neighbors")
    if float32:
        monkeypatch.setattr(neighbours, "EXACT_PRODUCTS", 0)
    real, fake = draw(150, 4, 0), draw(120, 4, 1, mean=0.4, spread=0.8)
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 8 * 150 * 11)

    def radius(points, k):
        near = sklearn.NearestNeighbors(n_neighbors=k + 1).fit(points)
        return near.kneighbors(points)[0][:, k]

    gaps = np.linalg.norm(fake[:, None] - real[None], axis=2)
    scores = manifold(real, fake)
    assert scores.precision == pytest.approx((gaps <= radius(real, 3)).any(1).mean())
    assert scores.recall == pytest.approx((gaps <= radius(fake, 3)[:, None]).any(0).mean())
    assert scores.density == pytest.approx((gaps <= radius(real, 5)).sum() / (5 * 120))
    assert scores.coverage == pytest.approx((gaps <= radius(real, 5)).any(0).mean())
    assert 0 < scores.recall < scores.precision < 1


def test_manifold_of_distant_equal_scaled_and_rotated_sets():
    real, fake = draw(200, 6, 0), draw(200, 6, 1)
    apart = manifold(real, fake + 100.0)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)
    same = manifold(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    scores = manifold(real, fake)
    rotated = manifold(2 * real @ rotation(6) + 9, 2 * fake @ rotation(6) + 9)
    assert rotated == scores
    shuffled = np.random.default_rng(3).permutation(200)
    assert manifold(real[shuffled], fake[::-1]) == scores
    with pytest.raises(ValueError, match="do not have 5 neighbours each"):
        manifold(real[:5], fake)
    with pytest.raises(ValueError, match="do not have 5 neighbours each"):
        manifold(real, fake[:4])


def test_duplicates_lower_recall_and_outliers_hardly_change_coverage():
    real, fake = draw(300, 4, 0), draw(300, 4, 1)
    whole = manifold(real, fake)
    one = manifold(real, np.repeat(real[:1], 300, 0))
    assert one.recall < 0.02
    assert one.coverage < 0.05
    assert one.precision == 1
    # The ball of one distant real image spans the gap, which raises precision but not coverage.
    with_outlier = np.concatenate([real, [[30.0] * 4]])
    between = fake + np.linspace(0, 20, 300)[:, None]
    assert manifold(with_outlier, between).precision > manifold(real, between).precision + 0.3
    assert manifold(with_outlier, between).coverage < manifold(real, between).coverage + 0.02
    assert whole.coverage > 0.8


def test_nearest_returns_the_nearest_features():
    features = draw(50, 3)
    indices = neighbours.nearest(features[[4, 7]] + 1e-6, features, 3)
    assert indices.shape == (2, 3)
    assert indices[:, 0].tolist() == [4, 7]
    gaps = np.linalg.norm(features - features[4], axis=1)
    assert indices[0].tolist() == np.argsort(gaps)[:3].tolist()


def test_format_metrics_follows_the_registry():
    values = {"fid": 12.3456, "kid": 0.01234, "kid_std": 0.00256, "inception_score": 2.5}
    text = "fid 12.35  kid 0.01234 +- 0.0026  inception_score 2.5"
    assert registry.format_metrics(values) == text
    spread = registry.format_metrics({"inception_score": 2.5, "inception_score_std": 0.25})
    assert spread == "inception_score 2.5 +- 0.25"
