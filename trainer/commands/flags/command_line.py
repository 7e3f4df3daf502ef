"""The command line of one command: its absl flags, and its --help."""

import dataclasses
import difflib
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from trainer.errors import HelpRequested, UsageError

HELP_WIDTH = 88
MAX_LISTED = 15  # flags in an error message


@dataclasses.dataclass(frozen=True)
class HelpDetails:
    """What --help shows beside the definitions of the flags.

    Attributes:
      introduction: lines between the summary and the flags.
      defaults: default values by flag, where they differ from the flag's own.
    """

    introduction: Sequence[str] = ()
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)


class CommandLine:
    """The flags of one command."""

    def __init__(self, command: str, summary: str) -> None:
        self._flags = flags.FlagValues()
        self._command, self._summary = command, summary
        self._hidden: set[str] = set()
        self._paths: set[str] = set()
        self._group, self._groups = "", dict[str, str]()
        flags.DEFINE_boolean("help", False, "show this help", flag_values=self._flags)

    def group(self, heading: str) -> None:
        """Lists the flags that are defined from now on below a heading in --help."""
        self._group = heading

    def text(self, name: str, help: str, default: str | None = None) -> None:
        """Defines a string flag."""
        self._groups[name] = self._group
        flags.DEFINE_string(name, default, help, flag_values=self._flags)

    def path(self, name: str, help: str, default: str | None = None) -> None:
        """Defines a flag that accepts a path, in which ~ stands for the home directory.

        The shell does not expand ~ behind an equals sign.
        """
        self._paths.add(name)
        self.text(name, help, default)

    def integer(self, name: str, help: str, default: int | None = None) -> None:
        """Defines an integer flag."""
        self._groups[name] = self._group
        flags.DEFINE_integer(name, default, help, flag_values=self._flags)

    def real(self, name: str, help: str, default: float | None = None) -> None:
        """Defines a floating-point flag."""
        self._groups[name] = self._group
        flags.DEFINE_float(name, default, help, flag_values=self._flags)

    def boolean(self, name: str, help: str, default: bool | None = None) -> None:
        """Defines a Boolean flag, --name and --noname."""
        self._groups[name] = self._group
        flags.DEFINE_boolean(name, default, help, flag_values=self._flags)

    def hide(self, name: str) -> None:
        """Leaves a flag out of the help and of the list of known flags."""
        self._hidden.add(name)

    def parse(
        self,
        arguments: Sequence[str],
        details: Callable[[Mapping[str, Any]], HelpDetails] = lambda values: HelpDetails(),
    ) -> dict[str, Any]:
        """Returns the values of the flags by name.

        Args:
          arguments: the arguments after the name of the command.
          details: returns further text for --help from the values of the flags.

        Raises:
          UsageError: for an unknown flag, a wrong value or an argument that is no flag.
          HelpRequested: for --help.
        """
        try:
            given = ["--help" if argument == "-h" else argument for argument in arguments]
            rest = self._flags([self._command, *given])[1:]
        except flags.UnrecognizedFlagError as error:
            known = sorted(set(self._flags) - self._hidden)
            near = difflib.get_close_matches(error.flagname, known, n=1)
            remedy = f"Known: {', '.join('--' + name for name in known)}."
            if near:
                remedy = f"Did you mean --{near[0]}? See --help."
            elif len(known) > MAX_LISTED:
                remedy = "--help lists the flags."
            raise UsageError(
                f"--{error.flagname} is not a flag of {self._command}. {remedy}"
            ) from None
        except flags.Error as error:
            raise UsageError(" ".join(str(error).split())) from None
        values = self._flags.flag_values_dict()
        for name in self._paths:
            if values[name]:
                values[name] = os.path.expanduser(values[name])
        if values["help"]:
            raise HelpRequested(self._help(details(values)))
        if rest:
            raise UsageError(f"{rest[0]!r} is not a flag. Flags start with --.")
        return values

    def _help(self, details: HelpDetails) -> str:
        summary = textwrap.fill(" ".join(self._summary.split()), HELP_WIDTH)
        lines = [f"usage: python -m trainer {self._command} [--flags]", "", summary]
        if details.introduction:
            lines += ["", *details.introduction]
        sections: dict[str, list[str]] = {}
        for name, heading in self._groups.items():
            if name not in self._hidden:
                sections.setdefault(heading, []).extend(self._explain(name, details.defaults))
        sections.setdefault(self._group, []).extend(self._explain("help", {}))
        for heading, section in sections.items():
            lines += ["", *([f"{heading}:"] if heading else []), *section]
        return "\n".join(lines)

    def _explain(self, name: str, defaults: Mapping[str, str]) -> list[str]:
        """Returns the lines of --help on a flag."""
        flag = self._flags[name]
        default = defaults.get(name)
        if default is None and flag.default is not False:
            default = flag.default
        known = "" if default in (None, "") else f" (default: {default})"
        return textwrap.wrap(
            f"--{'[no]' if flag.boolean else ''}{name}: {flag.help}{known}",
            width=HELP_WIDTH,
            initial_indent="  ",
            subsequent_indent="      ",
            break_on_hyphens=False,
        )
