"""Readers of settings, which refuse a value with the name of the setting and a remedy."""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from cluster import SubmissionError

LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"  # a DNS label
BUCKET = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
# A Google service account, which may also be one that Google creates for a service.
ACCOUNT = r"[a-z0-9-]+@[a-z0-9]([a-z0-9.-]*[a-z0-9])?\.gserviceaccount\.com"
PROJECT = r"([a-z0-9.-]+:)?[a-z0-9]([a-z0-9-]*[a-z0-9])?"  # an ID, with a domain, or a number
SIZE = r"[1-9]\d*(Mi|Gi)"
LENGTH = r"--(kimg|epochs|steps)=\S+"
GPU_TYPE = r"([\w./-]+=)?[\w.-]+"
RESOURCE = r"\w[\w-]*(\.\w[\w-]*)+/\w[\w.-]*"

# The parts of the reference to a container image, as registries define it.
_HOST = r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"({_HOST}(\.{_HOST})*|\[[0-9a-fA-F:]+\])(:[0-9]+)?"
_COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
IMAGE = rf"({_DOMAIN}/)?{_COMPONENT}(/{_COMPONENT})*(:\w[\w.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?"


class Parser(argparse.ArgumentParser):
    """Raises SubmissionError instead of printing the usage and exiting with code 2."""

    def error(self, message: str) -> NoReturn:
        """Refuses a command line."""
        raise SubmissionError(f"{message}. `python k8s/submit.py --help` lists the options.")


def choice(setting: str, choices: Sequence[str]) -> Callable[[str], str]:
    """Returns a reader of one of the choices."""

    def read(text: str) -> str:
        if text not in choices:
            raise SubmissionError(
                f"{setting}={text} does not exist. Choose from: {', '.join(choices)}."
            )
        return text

    return read


def integer(setting: str, least: int = 1, most: int = 9999, hint: str = "") -> Callable[[str], int]:
    """Returns a reader of integers, which reads an empty text as 0: not given."""

    def read(text: str) -> int:
        number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
        if text and not least <= number <= most:
            raise SubmissionError(
                f"{setting}={text} is invalid. Use an integer from {least} to {most}{hint}."
            )
        return number

    return read


def switch(setting: str) -> Callable[[str], bool]:
    """Returns a reader of 1, and of 0 or an empty text, which mean that it is not given."""

    def read(text: str) -> bool:
        if text not in ("", "0", "1"):
            raise SubmissionError(f"{setting}={text} is invalid. Use {setting}=1, or leave it out.")
        return text == "1"

    return read


def matching(setting: str, pattern: str, remedy: str) -> Callable[[str], str]:
    """Returns a reader of texts that match a pattern. An empty text means that it is not given."""

    def read(text: str) -> str:
        if text and not re.fullmatch(pattern, text, re.ASCII):
            raise SubmissionError(f"{setting}={text} is invalid. {remedy}")
        return text

    return read


def dns_label(setting: str) -> Callable[[str], str]:
    """Returns a reader of names that Kubernetes accepts."""
    return matching(
        setting,
        LABEL,
        "Use at most 63 lower-case letters, digits and hyphens, and no hyphen at either end.",
    )


def size(setting: str, example: str) -> Callable[[str], str]:
    """Returns a reader of sizes of memory or of a volume."""
    return matching(setting, SIZE, f"Use a size such as {example}.")
