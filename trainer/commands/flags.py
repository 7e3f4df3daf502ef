"""Defines absl flags from the settings of `Config`.  Does not import TensorFlow."""

import dataclasses
import difflib
import os
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from absl import flags

from trainer import recipes
from trainer.config import Config, value_types
from trainer.config.settings import Duration
from trainer.errors import HelpRequested, UsageError, one_of
from trainer.metrics.registry import METRICS

LENGTHS = {
    "steps": "length of training in steps (generator updates)",
    "epochs": "length of training in passes over the data set",
    "kimg": "length of training in thousands of images",
}

VERTEX = {  # environment variables by which Vertex AI names the output locations of a job
    "run_dir": "AIP_CHECKPOINT_DIR",
    "tensorboard_dir": "AIP_TENSORBOARD_LOG_DIR",
    "model_dir": "AIP_MODEL_DIR",
}


# Settings whose values are entries of tables above the configuration.
TABLES: Mapping[str, Collection[str]] = {
    "recipe": recipes.RECIPES,
    "best_metric": METRICS,
}


HELP_WIDTH = 88


class CommandLine:
    """The flags of one command."""

    def __init__(self, command: str, summary: str) -> None:
        self._flags = flags.FlagValues()
        self._command, self._summary = command, summary
        self.boolean("help", "show this help", default=False)

    def text(self, name: str, help: str, default: str | None = None) -> None:
        """Defines a string flag."""
        flags.DEFINE_string(name, default, help, flag_values=self._flags)

    def integer(self, name: str, help: str, default: int | None = None) -> None:
        """Defines an integer flag."""
        flags.DEFINE_integer(name, default, help, flag_values=self._flags)

    def real(self, name: str, help: str, default: float | None = None) -> None:
        """Defines a floating-point flag."""
        flags.DEFINE_float(name, default, help, flag_values=self._flags)

    def boolean(self, name: str, help: str, default: bool | None = None) -> None:
        """Defines a Boolean flag, --name and --noname."""
        flags.DEFINE_boolean(name, default, help, flag_values=self._flags)

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Returns the values of the flags by name.

        Args:
          arguments: the arguments after the name of the command.

        Raises:
          UsageError: for an unknown flag, a wrong value or an argument that is no flag.
          HelpRequested: for --help.
        """
        try:
            rest = self._flags([self._command, *arguments])[1:]
        except flags.UnrecognizedFlagError as error:
            near = difflib.get_close_matches(error.flagname, list(self._flags), n=1)
            hint = f" Did you mean --{near[0]}?" if near else ""
            raise UsageError(
                f"--{error.flagname} is not a flag of {self._command}.{hint} "
                f"Known: {', '.join('--' + name for name in sorted(self._flags))}."
            ) from None
        except flags.Error as error:
            raise UsageError(" ".join(str(error).split())) from None
        if self._flags["help"].value:
            raise HelpRequested(self._help())
        if rest:
            raise UsageError(f"{rest[0]!r} is not a flag. Flags start with --.")
        return self._flags.flag_values_dict()

    def _help(self) -> str:
        summary = textwrap.fill(" ".join(self._summary.split()), HELP_WIDTH)
        lines = [f"usage: python -m trainer {self._command} [--flags]", "", summary, ""]
        for flag in self._flags._flags().values():
            name = f"[no]{flag.name}" if flag.boolean else flag.name
            has_default = flag.default not in (None, "") and flag.default is not False
            known = f" (default: {flag.default})" if has_default else ""
            lines += textwrap.wrap(
                f"--{name}: {flag.help}{known}",
                width=HELP_WIDTH,
                initial_indent="  ",
                subsequent_indent="      ",
                break_on_hyphens=False,
            )
        return "\n".join(lines)


def define_settings(line: CommandLine) -> None:
    """Defines a flag for each setting of `Config`, and the flags of the length of training."""
    for name, meaning in LENGTHS.items():
        line.real(name, f"{meaning}; use at most one of --{', --'.join(LENGTHS)}")
    defines: dict[type, Callable[..., None]] = {
        int: line.integer,
        float: line.real,
        bool: line.boolean,
        str: line.text,
    }
    for field in dataclasses.fields(Config):
        kind = value_types()[field.name][0]
        if kind is Duration:
            if field.name != "length":
                line.real(f"{field.name}_kimg", _explain(field))
        else:
            defines[kind](field.name, _explain(field))


def define_checkpoint(line: CommandLine, more: str = "") -> None:
    """Defines --checkpoint; `more` is an additional value."""
    names = ", ".join(["best", "latest", *([more] if more else [])])
    line.text(
        "checkpoint",
        f"checkpoint to use: {names} or a step (default: the best one if the run kept one, "
        "otherwise the latest)",
    )


def checkpoint_choice(values: Mapping[str, Any], more: str = "") -> str:
    """Returns the value of --checkpoint, or "" if it was not given.

    Raises:
      UsageError: if it is not a valid value.
    """
    which: str = values["checkpoint"] or ""
    known = ["best", "latest", *([more] if more else [])]
    if which and which not in known and not which.isdecimal():
        raise UsageError(f"--checkpoint={which} is not valid. Use {', '.join(known)}, or a step.")
    return which


def _explain(field: "dataclasses.Field[Any]") -> str:
    rules = field.metadata
    parts = [rules["help"]]
    if choices := rules["choices"] or TABLES.get(field.name):
        parts.append(f"one of {', '.join(choices)}")
    if rules["low"] is not None and rules["high"] is not None:
        parts.append(f"{rules['low']} to {rules['high']}")
    if field.default not in ("", None):
        parts.append(f"default {field.default}")
    if rules["per_start"]:
        parts.append("applies to this start only")
    elif rules["may_change"]:
        parts.append("may change when a run is resumed")
    return "; ".join(parts)


def config_from_flags(
    values: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    stored_config: Callable[[str], Config | None] = lambda run_dir: None,
) -> Config:
    """Returns the configuration that the flags select.

    A new run takes the settings of its recipe.  A resumed run keeps its own settings, also
    where the recipe or a default has changed since.  Flags take precedence over both.

    Args:
      values: the flags by name; None for those that were not given.
      environment: environment variables.
      stored_config: returns the configuration of the run in a run directory, if there is one.

    Raises:
      UsageError: for settings that are wrong, or wrong together.
    """
    given: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        flag = field.name
        if value_types()[field.name][0] is Duration:
            flag = f"{field.name}_kimg"
        value = values.get(flag)
        if value is not None:
            given[field.name] = Duration(value, "kimg") if flag != field.name else value
        if value is not None and field.name in TABLES:
            one_of(f"--{field.name}", value, TABLES[field.name])
    lengths = [unit for unit in LENGTHS if values[unit] is not None]
    if len(lengths) > 1:
        raise UsageError(
            f"--{' and --'.join(lengths)} both set the length of training. Use at most one of them."
        )
    if lengths:
        given["length"] = Duration(values[lengths[0]], lengths[0])
    if data_dir := environment.get("TRAINER_DATA_DIR"):
        given.setdefault("data_dir", data_dir)
    for name, variable in VERTEX.items():
        if values.get(name) is None and environment.get(variable):
            given[name] = environment[variable].rstrip("/")
    if not given.get("run_dir"):
        recipe = given.get("recipe", "dcgan")
        name = f"{recipe}-{_short_name(given.get('dataset', 'digits'))}"
        given["run_dir"] = os.path.join("runs", name)
    return recipes.resolve(given, stored_config(given["run_dir"]))


def _short_name(dataset: str) -> str:
    """Returns the name of a data set, or the last part of its path."""
    last = os.path.basename(os.path.abspath(os.path.expanduser(dataset)))
    stem, suffix = os.path.splitext(last)
    return stem if suffix.lower() in (".zip", ".npz") else last
