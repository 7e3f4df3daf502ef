"""Distances between sets of features: closed forms, independent code, invariances."""

import numpy as np
import pytest

from trainer.metrics import distances, neighbours
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


def test_moments_are_those_of_numpy_however_batches_fall():
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
    with pytest.raises(ValueError, match="2 features or more, not 1"):
        _ = Moments.of(features[:1]).covariance


def test_fid_of_gaussians_in_closed_form():
    # Of N(m, diag s^2) and N(n, diag t^2): |m - n|^2 + |s - t|^2.
    m, s = np.array([1.0, -2.0, 0.5]), np.array([1.0, 2.0, 0.1])
    n, t = np.array([0.0, 1.0, 0.5]), np.array([3.0, 0.0, 0.1])
    expected = ((m - n) ** 2).sum() + ((s - t) ** 2).sum()
    first, second = gaussian(m, np.diag(s**2)), gaussian(n, np.diag(t**2))
    assert fid(first, second) == pytest.approx(expected, rel=1e-12)
    assert fid(second, first) == pytest.approx(expected, rel=1e-12)
    turned = [gaussian(rotation(3) @ g.mean, rotation(3) @ g.covariance @ rotation(3).T)
              for g in (first, second)]  # fmt: skip
    assert fid(*turned) == pytest.approx(expected, rel=1e-7)  # roots of rounding
    assert fid(first, first) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("count", [400, 12])  # 12 features of 32 dimensions: of low rank
def test_fid_against_a_root_by_scipy(count):
    linalg = pytest.importorskip("scipy.linalg")
    mix = draw(32, 32, 2)
    first, second = draw(count, 32, 0) @ mix, draw(count + 5, 32, 1, mean=0.3) @ mix
    c1, c2 = np.cov(first.T), np.cov(second.T)
    small = 0.0 if count > 32 else 1e-9  # scipy's root needs full rank
    root = linalg.sqrtm((c1 + small * np.eye(32)) @ (c2 + small * np.eye(32)))
    step = first.mean(0) - second.mean(0)
    expected = step @ step + np.trace(c1 + c2 - 2 * np.real(root))
    tolerance = 1e-9 if count > 32 else 1e-3
    assert fid(Moments.of(first), Moments.of(second)) == pytest.approx(expected, rel=tolerance)


def test_fid_of_images_that_are_all_alike_is_finite():
    same = Moments.of(np.ones((50, 8)))
    assert fid(same, same) == 0.0
    other = Moments.of(draw(50, 8))
    expected = ((other.mean - 1) ** 2).sum() + np.trace(other.covariance)
    assert fid(same, other) == pytest.approx(expected, rel=1e-12)


def test_fid_does_not_depend_on_order_and_scales_with_the_square():
    first, second = draw(300, 6, 0), draw(300, 6, 1, mean=1.0)
    value = fid(Moments.of(first), Moments.of(second))
    assert fid(Moments.of(first[::-1]), Moments.of(second)) == pytest.approx(value, rel=1e-10)
    assert fid(Moments.of(3 * first + 7), Moments.of(3 * second + 7)) == pytest.approx(9 * value)


def test_kid_is_the_plain_sum_over_pairs():
    first, second = draw(6, 3, 0), draw(6, 3, 1, mean=1.0)

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    def expected(x, y):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
        within = np.mean([k(x[i], x[j]) for i, j in pairs])
        within += np.mean([k(y[i], y[j]) for i, j in pairs])
        return within - 2 * np.mean([k(a, b) for a in x for b in y])

    # A subset is half the set: of a set written twice it may be all of it.
    values = []
    generator = np.random.default_rng(4)
    for _ in range(20):
        x = first[generator.choice(6, 3, replace=False)]
        y = second[generator.choice(6, 3, replace=False)]
        values.append(expected(x, y))
    mean, spread = kid(first, second, seed=4, subsets=20)
    assert mean == pytest.approx(np.mean(values), rel=1e-12)
    assert spread == pytest.approx(np.std(values), rel=1e-9)


def test_kid_has_no_bias():
    """Of two sets of one distribution it is 0 within its spread, however small they are."""
    for count in (20, 200):
        values = [
            kid(draw(count, 4, 2 * n), draw(count, 4, 2 * n + 1), subsets=5)[0] for n in range(60)
        ]
        assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(60)
        assert min(values) < 0 < max(values)
    assert kid(draw(500, 4), draw(500, 4, 1, mean=1.0))[0] > 1.0
    with pytest.raises(ValueError, match="4 features or more"):
        kid(draw(3, 4), draw(500, 4))


def test_inception_score_between_one_and_the_classes():
    sure = 100.0 * np.eye(10)[np.arange(1000) % 10]
    assert inception_score(sure)[0] == pytest.approx(10.0)
    assert inception_score(np.zeros((1000, 10))) == pytest.approx((1.0, 0.0))
    assert inception_score(100.0 * np.eye(10)[np.zeros(1000, int)])[0] == pytest.approx(1.0)
    # Half and half between two classes, always the same: KL to the marginal is 0.
    half = np.log(np.array([[0.5, 0.5, 1e-300]] * 100))
    assert inception_score(half, splits=1)[0] == pytest.approx(1.0)
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    marginal = p.mean(0)
    expected = np.exp((p * np.log(p / marginal)).sum(1).mean())
    assert inception_score(np.log(p) + 5.0, splits=1)[0] == pytest.approx(expected)
    with pytest.raises(ValueError, match="do not make 10 parts"):
        inception_score(sure[:9])


def test_accuracy_and_confusion():
    logits = np.eye(3)[[0, 1, 1, 2]]
    labels = np.array([0, 1, 2, 2])
    assert distances.conditional_accuracy(logits, labels) == 0.75
    np.testing.assert_array_equal(
        distances.confusion(logits, labels), [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    )


def test_class_fids_where_there_are_enough_images():
    first, second = draw(90, 4, 0), draw(90, 4, 1)
    labels = np.repeat([0, 1, 2], [50, 37, 3])
    second[labels == 1] += 2.0
    values = class_fids(first, labels, second, labels, 4)
    assert values.keys() == {0, 1}
    assert values[1] > values[0] + 10
    assert values[0] == pytest.approx(fid(Moments.of(first[:50]), Moments.of(second[:50])))


def test_radii_are_those_of_scikit_learn(monkeypatch):
    sklearn = pytest.importorskip("sklearn.neighbors")
    features = draw(200, 5)
    near = sklearn.NearestNeighbors(n_neighbors=6).fit(features)
    expected = near.kneighbors(features)[0][:, [3, 5]].T ** 2  # the first is itself
    np.testing.assert_allclose(radii(features, (3, 5)), expected, rtol=1e-9)
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 8 * 200 * 7)  # bands of 7 rows
    np.testing.assert_allclose(radii(features, (3, 5)), expected, rtol=1e-9)


@pytest.mark.parametrize("single", [False, True])
def test_manifold_against_scikit_learn(monkeypatch, single):
    sklearn = pytest.importorskip("sklearn.neighbors")
    if single:
        monkeypatch.setattr(neighbours, "EXACT_PRODUCTS", 0)
    real, fake = draw(150, 4, 0), draw(120, 4, 1, mean=0.4, spread=0.8)
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 8 * 150 * 11)

    def reach(points, k):
        near = sklearn.NearestNeighbors(n_neighbors=k + 1).fit(points)
        return near.kneighbors(points)[0][:, k]

    apart = np.linalg.norm(fake[:, None] - real[None], axis=2)
    found = manifold(real, fake)
    assert found.precision == pytest.approx((apart <= reach(real, 3)).any(1).mean())
    assert found.recall == pytest.approx((apart <= reach(fake, 3)[:, None]).any(0).mean())
    assert found.density == pytest.approx((apart <= reach(real, 5)).sum() / (5 * 120))
    assert found.coverage == pytest.approx((apart <= reach(real, 5)).any(0).mean())
    assert 0 < found.recall < found.precision < 1


def test_manifold_of_sets_apart_alike_moved_and_turned():
    real, fake = draw(200, 6, 0), draw(200, 6, 1)
    apart = manifold(real, fake + 100.0)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)
    same = manifold(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    found = manifold(real, fake)
    turned = manifold(2 * real @ rotation(6) + 9, 2 * fake @ rotation(6) + 9)
    assert turned == found
    shuffled = np.random.default_rng(3).permutation(200)
    assert manifold(real[shuffled], fake[::-1]) == found
    with pytest.raises(ValueError, match="no 5 neighbours each"):
        manifold(real[:5], fake)
    with pytest.raises(ValueError, match="no 5 neighbours each"):
        manifold(real, fake[:4])


def test_duplicates_move_recall_and_outliers_move_coverage_little():
    real, fake = draw(300, 4, 0), draw(300, 4, 1)
    whole = manifold(real, fake)
    one = manifold(real, np.repeat(real[:1], 300, 0))
    assert one.recall < 0.02
    assert one.coverage < 0.05
    assert one.precision == 1
    # One real far off: its ball spans the gap, which lifts precision and not coverage.
    with_outlier = np.concatenate([real, [[30.0] * 4]])
    between = fake + np.linspace(0, 20, 300)[:, None]
    assert manifold(with_outlier, between).precision > manifold(real, between).precision + 0.3
    assert manifold(with_outlier, between).coverage < manifold(real, between).coverage + 0.02
    assert whole.coverage > 0.8


def test_nearest():
    features = draw(50, 3)
    found = neighbours.nearest(features[[4, 7]] + 1e-6, features, 3)
    assert found.shape == (2, 3)
    assert found[:, 0].tolist() == [4, 7]
    apart = np.linalg.norm(features - features[4], axis=1)
    assert found[0].tolist() == np.argsort(apart)[:3].tolist()
