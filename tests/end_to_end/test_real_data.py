"""A few steps on real data sets; skipped unless TRAINER_DATA_DIR names their folder."""

import numpy as np
import pytest

from tests.helpers.runs import variables
from trainer import recipes
from trainer.config.settings import Duration
from trainer.data import sources

SIZES = {"mnist": (60000, 28, 1), "fashion_mnist": (None, 28, 1), "cifar10": (50000, 32, 3)}


@pytest.mark.parametrize("dataset", SIZES)
def test_data_sets_load_from_their_published_files(data_dir, dataset):
    data = sources.load(recipes.resolve(dict(dataset=dataset, data_dir=data_dir)))
    count, size, channels = SIZES[dataset]
    assert count in (None, len(data))
    assert data.images.shape[1:] == (size, size, channels)
    assert set(np.unique(data.labels)) == set(range(10))
    assert 20 < data.images.mean() < 150


@pytest.mark.parametrize(
    ("recipe", "dataset"),
    [("cgan", "mnist"), ("dcgan", "cifar10"), ("dcgan-studiogan", "fashion_mnist")],
)
def test_recipes_train_on_real_data(data_dir, tiny, run, recipe, dataset):
    config = tiny(
        recipe=recipe, dataset=dataset, data_dir=data_dir, length=Duration(3, "steps"), split="test"
    )
    output = run(config)
    assert f"Recipe {recipe} on {dataset}" in output
    assert all(np.isfinite(value).all() for value in variables(config.run_dir).values())
