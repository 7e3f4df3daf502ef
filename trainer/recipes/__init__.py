"""Published systems by name: what differs from the default configuration."""

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


def resolve(given: Mapping[str, Any]) -> Config:
    """The configuration of a recipe with the `given` settings on top.

    A recipe's networks and its loop are independent: `networks` names another
    recipe whose networks, with their settings, run under this recipe's loop.

    Raises:
      UsageError: for an unknown recipe or a value that is out of range.
    """
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
