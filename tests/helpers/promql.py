"""Evaluates alerts on series of samples, for those few forms of PromQL that the rules have."""

import bisect
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# By name and labels: the times in seconds, and the samples, None where the series ends (stale).
Key = tuple[str, frozenset[tuple[str, str]]]
Series = Mapping[Key, tuple[list[float], list[float | None]]]
Vector = dict[tuple[tuple[str, str], ...], float]
LOOKBACK_SECS = 300.0
SECS = {"s": 1, "m": 60, "h": 3600}
AGGREGATIONS = {"max": max, "min": min}
TERM = re.compile(
    r"(?P<aggregation>max|min) by \((?P<by>\w+(, \w+)*)\) "
    r"\(((?P<function>max_over_time|min_over_time|increase)\()?"
    r'(?P<name>[a-z_]+)(\{(?P<label>\w+)(?P<operator>=~?)"(?P<value>[^"]*)"\})?'
    r"(\[(?P<window>\w+)\]\))?\)"
)
COMPARISON = re.compile(r"(?P<terms>.+) (?P<operator>==|>) (?P<limit>\d+)")


def read_rules(path: Path) -> list[dict[str, Any]]:
    """Returns the rules of a PrometheusRule."""
    (group,) = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["groups"]
    return group["rules"]


def evaluate(expression: str, series: Series, now: float) -> Vector:
    """Returns what the expression of an alert yields at a time, by labels.

    Raises:
      ValueError: if the expression has a form that is not supported.
    """
    comparison = COMPARISON.fullmatch(expression)
    if not comparison:
        raise ValueError(f"not a comparison with a number: {expression}")
    limit, is_equality = float(comparison["limit"]), comparison["operator"] == "=="
    first, *others = comparison["terms"].split(" - ")
    if "increase(" in expression and (others or limit or is_equality):
        # `increase` extrapolates, which changes no sign; this one does not.
        raise ValueError(f"an increase may only be compared with > 0: {expression}")
    if first == "time()":
        if len(others) != 1:
            raise ValueError(f"one term must follow time(): {expression}")
        vector = {labels: now - value for labels, value in _term(others[0], series, now).items()}
    else:
        vector = _term(first, series, now)
        for other in others:
            right = _term(other, series, now)
            vector = {each: vector[each] - right[each] for each in vector.keys() & right.keys()}
    return {
        labels: value
        for labels, value in vector.items()
        if (value == limit if is_equality else value > limit)
    }


def seconds(duration: str) -> float:
    """Returns a duration such as 30m in seconds."""
    return float(duration[:-1]) * SECS[duration[-1]]


class Alerts:
    """The state of alerts between evaluations."""

    def __init__(self, rules: list[dict[str, Any]]) -> None:
        self._rules = rules
        self._since: dict[tuple[str, Any], float] = {}

    def firing(self, series: Series, now: float) -> set[tuple[str, Any]]:
        """Returns the names and labels of the alerts that fire; `now` must increase."""
        since = {}
        holds = {rule["alert"]: seconds(rule.get("for", "0s")) for rule in self._rules}
        for rule in self._rules:
            for labels in evaluate(rule["expr"], series, now):
                key = (rule["alert"], labels)
                since[key] = self._since.get(key, now)
        self._since = since
        return {key for key, began in since.items() if now - began >= holds[key[0]]}


def _term(text: str, series: Series, now: float) -> Vector:
    """Returns the values of an aggregation by its labels."""
    term = TERM.fullmatch(text)
    if not term or (term["function"] is None) != (term["window"] is None):
        raise ValueError(f"not a supported form: {text}")
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for (name, labels), (times, samples) in series.items():
        if name != term["name"] or not _matches(term, dict(labels)):
            continue
        value = _value(term["function"], term["window"], times, samples, now)
        if value is not None:
            by = term["by"].split(", ")
            group = tuple((label, dict(labels)[label]) for label in by if label in dict(labels))
            groups.setdefault(group, []).append(value)
    return {group: AGGREGATIONS[term["aggregation"]](found) for group, found in groups.items()}


def _matches(term: re.Match[str], labels: dict[str, str]) -> bool:
    if term["label"] is None:
        return True
    actual = labels.get(term["label"], "")
    if term["operator"] == "=":
        return actual == term["value"]
    return re.fullmatch(term["value"], actual) is not None


def _value(
    function: str | None,
    window: str | None,
    times: list[float],
    samples: list[float | None],
    now: float,
) -> float | None:
    """Returns the value of one series at a time; None without one."""
    end = bisect.bisect_right(times, now)
    begin = bisect.bisect_right(times, now - (seconds(window) if window else LOOKBACK_SECS))
    if function is None:  # the newest sample, unless the series has ended
        return samples[end - 1] if end > begin else None
    found = [sample for sample in samples[begin:end] if sample is not None]
    if function != "increase":
        return AGGREGATIONS[function[:3]](found, default=None)
    if len(found) < 2:
        return None
    pairs = itertools.pairwise(found)
    return sum(after - before if after >= before else after for before, after in pairs)
