"""Recipes in files of the user.

A run that trains such a recipe keeps a copy of the file in its run directory, named after the
file and the SHA-256 of its content: `mygan.py` becomes `recipes/mygan-3b1f0c77a2d94e65.py`.  This
name is also the value of the setting `recipe`.  So a run cannot be resumed with another content,
and all workers of a run must have the same one.
"""

import dataclasses
import hashlib
import re
import sys
import types
from pathlib import Path

from trainer.config import Config, hyperparameters
from trainer.errors import CheckpointError, UsageError
from trainer.machine import imports
from trainer.recipes.recipe import Recipe

COPY_NAME = re.compile(r"(?P<stem>[^\s/]+)-(?P<digest>[0-9a-f]{16})\.py")
TERMINAL_CODES = re.compile("\x1b\\[[0-9;]*m")
# What Keras writes around the reason for an error in a layer.
KERAS_FRAME = re.compile(
    r"Exception encountered when calling (\S+?)(?:\.call)?\(\)\.\s+|\s*Arguments received by .*",
    re.S,
)


@dataclasses.dataclass(frozen=True)
class RecipeFile:
    """A recipe that was loaded from a file.

    Attributes:
      recipe: the recipe.
      content: the content of the file.
      shown: how messages name the file.
    """

    recipe: Recipe
    content: bytes
    shown: str


_loaded: dict[str, RecipeFile] = {}  # by the name of the copy


def is_file(recipe: str) -> bool:
    """Returns whether a value of --recipe or --networks names a file."""
    return recipe.endswith(".py")


def stem(recipe: str) -> str:
    """Returns the name of a recipe without the folder, the hash and the suffix of its file."""
    if not is_file(recipe):
        return recipe
    name = Path(recipe).name
    match = COPY_NAME.fullmatch(name)
    return match["stem"] if match else Path(name).stem


def shown_name(recipe: str) -> str:
    """Returns the name of a recipe for messages: of a copy, that of the file which was copied."""
    return f"{stem(recipe)}.py" if is_file(recipe) else recipe


def with_shown_names(text: str) -> str:
    """Returns a text in which the names of files stand for those of their copies."""
    return COPY_NAME.sub(lambda match: shown_name(match[0]), text)


def load_file(flag: str, path: str) -> str:
    """Loads a recipe from a file of the user; returns the name of its copy.

    Args:
      flag: the flag that names the file, for messages.
      path: the file, or the name of a copy that is loaded.

    Raises:
      UsageError: if the file cannot be read or does not define a recipe.
    """
    if path in _loaded:  # the name of a copy, from a configuration
        return path
    file = Path(path).expanduser()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{flag}={path} cannot be read ({error.strerror}). Name a recipe, or an existing file "
            "that defines one."
        ) from None
    name = f"{file.stem}-{_digest(content)}.py"
    if name not in _loaded:
        _loaded[name] = _execute(content, str(file), f"{flag}={path}")
    return name


def load_copies(folder: Path, config: Config) -> None:
    """Loads the recipes of a run from the copies in its run directory.

    Args:
      folder: the folder of the copies.
      config: the configuration of the run.

    Raises:
      CheckpointError: if a copy is missing or was changed.
    """
    for name in names_of(config):
        if name in _loaded:
            continue
        path = folder / name
        match = COPY_NAME.fullmatch(name)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{path}, the recipe of this run, cannot be read ({error.strerror}). Restore it."
            ) from None
        if match is None or match["digest"] != _digest(content):
            raise CheckpointError(
                f"{path}, the recipe of this run, was changed: its name no longer matches its "
                "content. Restore it, or start a new run with the changed recipe."
            )
        _loaded[name] = _execute(content, str(path), str(path))


def copies(config: Config) -> dict[str, bytes]:
    """Returns the recipe files of a run to keep in its run directory, content by name."""
    return {name: _loaded[name].content for name in names_of(config)}


def shown(name: str) -> str:
    """Returns how messages name a recipe: the file that it was loaded from, or its name."""
    return _loaded[name].shown if name in _loaded else f"--networks={name}"


def get(name: str) -> Recipe:
    """Returns a recipe that was loaded from a file, by the name of its copy.

    Raises:
      UsageError: if it was not loaded.
    """
    if name not in _loaded:
        raise UsageError(
            f"--recipe={name} is the copy of a recipe in a run directory. Name the original file, "
            "or resume the run with --run_dir."
        )
    return _loaded[name].recipe


def failure(error: Exception, file: str) -> str:
    """Returns the line, the type and the text of an exception that code in a file caused."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    at = f"line {line}: " if line else ""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    text = TERMINAL_CODES.sub("", KERAS_FRAME.sub("", text))
    return " ".join(f"{at}{type(error).__name__}: {text}".split())


def names_of(config: Config) -> list[str]:
    """Returns the names of the copies of the recipe files that a run needs."""
    return sorted({name for name in (config.recipe, config.networks) if is_file(name)})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _execute(content: bytes, file: str, shown: str) -> RecipeFile:
    """Runs the content of a recipe file."""
    module = types.ModuleType(f"trainer_recipe_{_digest(content)}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses and Keras look modules up by name
    try:
        with imports.quiet():  # the file may import TensorFlow
            exec(compile(content, file, "exec"), module.__dict__)
    except Exception as error:
        raise UsageError(f"{shown} cannot be loaded ({failure(error, file)}).") from None
    return RecipeFile(of_module(module, shown), content, shown)


def of_module(module: types.ModuleType, shown: str) -> Recipe:
    """Returns the recipe that a module defines.

    Args:
      module: the module.
      shown: how messages name it.

    Raises:
      UsageError: if a part is missing, or a setting does not exist.
    """
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise UsageError(
            f"{shown} does not define RECIPE, an instance of trainer.recipes.recipe.Recipe."
        )
    for name in ("generator", "discriminator"):
        if not callable(getattr(module, name, None)):
            raise UsageError(f"{shown} does not define the function {name}(config, shape).")
    hyperparameters.check_declared(recipe.hyperparameters, shown)
    for settings in ({}, *recipe.by_dataset.values(), *recipe.by_size.values()):
        try:
            Config(**Config.parse_values({**recipe.networks, **recipe.loop, **settings}))
        except (UsageError, TypeError) as error:
            raise UsageError(f"{shown}: {error}") from None
    summary = (module.__doc__ or "").strip().partition("\n")[0]
    recipe = dataclasses.replace(recipe, summary=summary)
    return recipe.with_networks(module.generator, module.discriminator)
