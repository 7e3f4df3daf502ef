"""Loads sets of pictures in tests."""

from trainer import recipes
from trainer.data import sources


def load(path, **given):
    """Returns the data set at a path, which may have any number of pictures."""
    return sources.load(recipes.resolve(dict(dataset=str(path), batch_size=1, **given)))
