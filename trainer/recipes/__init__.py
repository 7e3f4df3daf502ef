"""Published systems by name: what differs from the default configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from trainer.config import Config
from trainer.errors import one_of
from trainer.recipes import cgan, dcgan, dcgan_kstep, dcgan_sigmoid, dcgan_studiogan, mlp, mlp_small
from trainer.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    "dcgan": dcgan.RECIPE,
    "dcgan-sigmoid": dcgan_sigmoid.RECIPE,
    "mlp-small": mlp_small.RECIPE,
    "dcgan-kstep": dcgan_kstep.RECIPE,
    "cgan": cgan.RECIPE,
    "mlp": mlp.RECIPE,
    "dcgan-studiogan": dcgan_studiogan.RECIPE,
}


def resolve(given: Mapping[str, Any], stored: Config | None = None) -> Config:
    """Returns the configuration of a recipe, or of a stored run, with `given` settings on top.

    The networks of a recipe and its loop are independent: `networks` names another
    recipe whose networks, with their settings, train under this recipe's loop.

    Args:
      given: settings that the user gives.
      stored: the configuration of the run that is resumed, which keeps its settings.

    Raises:
      UsageError: for an unknown recipe or a value that is out of range.
    """
    if stored is not None:
        kept = {
            field.name: getattr(stored, field.name)
            for field in dataclasses.fields(Config)
            if not field.metadata["per_start"]
        }
        return Config(**Config.parse_values({**kept, **given}))
    name = one_of("--recipe", given.get("recipe", "dcgan"), RECIPES)
    networks = one_of("--networks", given.get("networks") or name, RECIPES)
    recipe = RECIPES[name]
    values = {
        **RECIPES[networks].networks,
        **recipe.loop,
        **recipe.by_dataset.get(given.get("dataset", "digits"), {}),
        **given,
        "recipe": name,
        "networks": networks,
    }
    return Config(**Config.parse_values(values))
