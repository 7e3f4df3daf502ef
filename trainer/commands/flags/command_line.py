"""The command line of one command: its absl flags, and its --help."""

import difflib
import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags

from trainer.errors import HelpRequested, UsageError

HELP_WIDTH = 88


class CommandLine:
    """The flags of one command."""

    def __init__(self, command: str, summary: str) -> None:
        self._flags = flags.FlagValues()
        self._command, self._summary = command, summary
        self._hidden: set[str] = set()
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

    def hide(self, name: str) -> None:
        """Leaves a flag out of the help and of the list of known flags."""
        self._hidden.add(name)

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
            known = sorted(set(self._flags) - self._hidden)
            near = difflib.get_close_matches(error.flagname, known, n=1)
            hint = f" Did you mean --{near[0]}?" if near else ""
            raise UsageError(
                f"--{error.flagname} is not a flag of {self._command}.{hint} "
                f"Known: {', '.join('--' + name for name in known)}."
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
            if flag.name in self._hidden:
                continue
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
