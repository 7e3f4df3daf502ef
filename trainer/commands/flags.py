"""The command line: absl flags made from the settings of `Config`.  No TensorFlow."""

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
    "steps": "train for this many steps (a step: one generator update)",
    "epochs": "train for this many passes over the data set",
    "kimg": "train for this many thousand images",
}

VERTEX = {  # variables by which Vertex AI says where a job's results go, by the setting
    "run_dir": "AIP_CHECKPOINT_DIR",
    "tensorboard_dir": "AIP_TENSORBOARD_LOG_DIR",
    "model_dir": "AIP_MODEL_DIR",
}


# Settings whose values are entries of tables above the configuration.
TABLES: Mapping[str, Collection[str]] = {
    "recipe": recipes.RECIPES,
    "best_metric": METRICS,
}


class CommandLine:
    """The flags of one command: define, parse, explain."""

    def __init__(self, command: str, summary: str) -> None:
        self._flags = flags.FlagValues()
        self._command, self._summary = command, summary
        self.boolean("help", "show this text", default=False)

    def text(self, name: str, help: str, default: str | None = None) -> None:
        """Defines a flag that takes a text."""
        flags.DEFINE_string(name, default, help, flag_values=self._flags)

    def integer(self, name: str, help: str, default: int | None = None) -> None:
        """Defines a flag that takes a whole number."""
        flags.DEFINE_integer(name, default, help, flag_values=self._flags)

    def real(self, name: str, help: str, default: float | None = None) -> None:
        """Defines a flag that takes a number."""
        flags.DEFINE_float(name, default, help, flag_values=self._flags)

    def boolean(self, name: str, help: str, default: bool | None = None) -> None:
        """Defines a flag that is on as --name and off as --noname."""
        flags.DEFINE_boolean(name, default, help, flag_values=self._flags)

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The values of the flags by name, from the arguments behind the command's name.

        Raises:
          UsageError: for an unknown flag, a wrong value or a stray word.
          HelpRequested: if they ask for help.
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
            raise UsageError(f"{rest[0]!r} is not a flag; flags begin with --.")
        return self._flags.flag_values_dict()

    def _help(self) -> str:
        lines = [f"usage: python -m trainer {self._command} [--flags]", "", self._summary, ""]
        for flag in self._flags._flags().values():
            name = f"[no]{flag.name}" if flag.boolean else flag.name
            known = f" (default: {flag.default})" if flag.default not in (None, False, "") else ""
            lines += textwrap.wrap(
                f"--{name}: {flag.help}{known}",
                width=88,
                initial_indent="  ",
                subsequent_indent="      ",
                break_on_hyphens=False,
            )
        return "\n".join(lines)


def define_settings(line: CommandLine) -> None:
    """Defines a flag for each setting of `Config`, and those of the run's length."""
    for name, meaning in LENGTHS.items():
        line.real(name, f"{meaning}; at most one of --{', --'.join(LENGTHS)}")
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
    """Defines the flag that says which checkpoint of a run to take; `more` is a word besides."""
    besides = f", or {more}" if more else ""
    line.text(
        "checkpoint",
        f"best, latest, or the step of one{besides} (default: the best where the run kept one, "
        "else the latest)",
    )


def checkpoint_choice(values: Mapping[str, Any], more: str = "") -> str:
    """The value of --checkpoint; "" if it was not given.

    Raises:
      UsageError: if it is none that there is.
    """
    which: str = values["checkpoint"] or ""
    known = ["best", "latest", *([more] if more else [])]
    if which and which not in known and not which.isdecimal():
        raise UsageError(f"--checkpoint={which} is none of {', '.join(known)}, or a step.")
    return which


def _explain(field: "dataclasses.Field[Any]") -> str:
    rules = field.metadata
    parts = [rules["help"]]
    if choices := rules["choices"] or TABLES.get(field.name):
        parts.append(f"one of {', '.join(choices)}")
    if rules["low"] is not None and rules["high"] is not None:
        parts.append(f"{rules['low']:g} to {rules['high']:g}")
    if field.default not in ("", None):
        parts.append(f"default {field.default}")
    if rules["may_change"]:
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
            f"--{' and --'.join(lengths)} both say how long to train: give at most one."
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
    """The name of a data set, or the last part of its path."""
    last = os.path.basename(os.path.abspath(os.path.expanduser(dataset)))
    stem, suffix = os.path.splitext(last)
    return stem if suffix.lower() in (".zip", ".npz") else last
