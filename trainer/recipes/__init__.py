"""Recipes: published systems by name, and those that users define in files."""

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from typing import Any

from trainer.config import Config, augment_policy, hyperparameters, schedules, without_effect
from trainer.config.all_settings import scheduled
from trainer.errors import UsageError, one_of
from trainer.models.objective import OBJECTIVES
from trainer.recipes import builtin, files
from trainer.recipes.recipe import Recipe


def _builtin() -> dict[str, Recipe]:
    """Returns the recipes of the folder builtin/ by name."""
    found = {}
    for info in pkgutil.iter_modules(builtin.__path__):
        module = importlib.import_module(f"{builtin.__name__}.{info.name}")
        found[info.name.replace("_", "-")] = files.of_module(module, module.__name__)
    return found


RECIPES: dict[str, Recipe] = _builtin()


def get(name: str) -> Recipe:
    """Returns a recipe by its name, or by the name of its copy if it was loaded from a file.

    Raises:
      UsageError: if there is no such recipe.
    """
    return files.get(name) if files.is_file(name) else RECIPES[one_of("--recipe", name, RECIPES)]


def network_sides(config: Config, sides: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and width for which the networks of a configuration are built.

    Args:
      config: the configuration.
      sides: height and width of the images, which are the middle of what the networks make.

    Raises:
      UsageError: if the networks cannot make such images.
    """
    return get(config.networks).network_sides(config, sides, files.shown_name(config.networks))


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
    given = dict(given)
    for flag in ("recipe", "networks"):
        if given.get(flag):
            given[flag] = _load(f"--{flag}", given[flag])
    if stored is None:
        name = given.setdefault("recipe", "dcgan")
        networks = given["networks"] = given.get("networks") or name
        settings = _defaults(name, networks, given.get("dataset", "digits"))
    else:
        settings = stored.per_run_settings()
        networks = given.get("networks") or stored.networks
    given["hyperparameters"] = hyperparameters.merge(
        get(networks).hyperparameters,
        stored.hyperparameters if stored else "",
        given.get("hyperparameters", ""),
    )
    base = Config.parse_values(settings)
    changes = Config.parse_values(given, base)
    if stored is not None:
        changes |= {k: schedules.kept(v, base[k]) for k, v in changes.items() if k in scheduled()}
    elif changes.get("augment", base.get("augment")) != base.get("augment"):
        # The recipe's belong to another augmentation.
        base.pop("augment_policy", None)
        base.pop("augment_strength", None)
    config = Config(**augment_policy.complete({**base, **changes}))
    _check_loss(config)
    if stored is None:  # the command of an older run may give more
        sizes = get(config.recipe).by_size
        sized = [adapt_to_size(config, (size, size), given) for size in sizes]
        without_effect.check_given([config, *sized], given)
    return config


def adapt_to_size(config: Config, sides: tuple[int, int], requested: Collection[str]) -> Config:
    """Returns the configuration of a new run with its recipe's settings for the image size.

    Args:
      config: the configuration.
      sides: height and width of the images in pixels.
      requested: names of the settings that the user set, which are kept.
    """
    by_size = get(config.recipe).by_size
    fitting = [size for size in by_size if size <= min(sides)]
    if not fitting:
        return config
    kept = {"augment_strength", *requested} if "augment" in requested else requested
    settings = {k: v for k, v in by_size[max(fitting)].items() if k not in kept}
    return config.replace(**Config.parse_values(settings))


def _check_loss(config: Config) -> None:
    """Raises a UsageError if other settings do not fit the loss."""
    objective = OBJECTIVES[one_of("--loss", config.loss, OBJECTIVES)]
    if config.augment_strength == "adaptive" and not objective.classifies:
        raise UsageError(
            f"--augment_strength=adaptive follows the signs of the discriminator's logits, which "
            f"mean nothing with --loss={config.loss}. Set --augment_strength to a number or a "
            "schedule."
        )
    if not objective.on_pairs:
        return
    if config.updates.batches == "sequential":
        raise UsageError(
            f"--loss={config.loss} compares reals with fakes, which --update_rule="
            f"{config.update_rule} shows in different updates. Use --update_rule=separate or joint."
        )
    for name in ("smooth_real", "smooth_fake", "flip_labels"):
        if getattr(config, name):
            raise UsageError(
                f"--{name}={getattr(config, name)} changes the targets of single images, which "
                f"--loss={config.loss} does not have. Omit the flag."
            )


def differences(config: Config) -> set[str]:
    """Returns the names of the settings that differ from those of the recipe."""
    selection = dict(recipe=config.recipe, networks=config.networks, dataset=config.dataset)
    default = resolve(selection).as_dict()
    return {name for name, value in config.as_dict().items() if value != default[name]}


def _defaults(name: str, networks: str, dataset: str) -> dict[str, Any]:
    recipe = get(name)
    return {**get(networks).networks, **recipe.loop, **recipe.by_dataset.get(dataset, {})}


def _load(flag: str, value: str) -> str:
    """Returns a recipe's name, or the name of the copy of a file, which is loaded."""
    return files.load_file(flag, value) if files.is_file(value) else one_of(flag, value, RECIPES)
