"""Whether the classifier that judges images can be trusted is said."""

import numpy as np
import pytest

from trainer.data.images import ImageSet
from trainer.evaluation import classifier


@pytest.mark.parametrize(
    ("accuracy", "images", "warned"),
    [(0.25, 4, True), (0.69, 1000, True), (0.95, 99, True), (0.7, 100, False), (0.99, 297, False)],
)
def test_a_weak_or_hardly_tested_classifier_is_named(caplog, accuracy, images, warned):
    classifier.warn_if_weak("./pics", {"test_accuracy": accuracy, "test_images": images})
    assert bool(caplog.records) == warned
    if warned:
        share = round(100 * accuracy)
        assert f"--dataset=./pics is right on {share}% of {images} test images." in caplog.text
        assert "with --inception_path" in caplog.text


def test_the_warning_is_given_from_the_cache_too(tiny, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(classifier.IMAGES, 1, 200)
    draw = np.random.default_rng(0)
    data = ImageSet(
        draw.integers(0, 256, (40, 8, 8, 1), np.uint8),
        np.arange(40, dtype=np.int32) % 2,
        ("cat", "dog"),
    )
    np.savez(tmp_path / "noise.npz", x=data.images, y=data.labels)
    caplog.set_level("INFO", "trainer")
    for attempt in range(2):
        caplog.clear()
        classifier.load(tiny(dataset=str(tmp_path / "noise.npz")), data)
        described = (
            "noise.npz, whose features compare images, on 36 images, each seen about 6 times (kept "
            "for later evaluations). It is tested on 4 images held out from training, because the "
            "data set has no suitable test split."
        )
        assert (described in caplog.text) == (attempt == 0)
        assert [record.levelname for record in caplog.records].count("WARNING") == 1
        assert "of 4 test images" in caplog.text
