"""What commands print, and how they stop."""

import json as json_module
import os
import shlex
import sys
import time
from collections.abc import Iterable
from math import isfinite
from typing import Any

from dreamsa.text import printable


def overrides(pairs: list[str] | None, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Settings by dotted name, from --set and from the flags that stand for settings."""
    from dreamsa.settings import parse_setting

    flags = {key: value for key, value in (given or {}).items() if value is not None}
    return flags | dict(map(parse_setting, pairs or []))


COLOURS = {"no": "33", "not": "33", "missing:": "31"}
"""Of a terminal, by the first word of a fact."""


def print_facts(facts: dict[str, Any], as_json: bool) -> None:
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for line in [one_line_json(facts)] if as_json else _lines(facts, coloured):
        print(line)


def _lines(facts: dict[str, Any], coloured: bool, indent: str = "") -> Iterable[str]:
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict):
            yield f"{indent}{key}"
            yield from _lines(value, coloured, indent + "  ")
        elif value is not None:
            first = str(value).split(" ", 1)[0].rstrip(";,")
            colour = COLOURS.get(first) if coloured else None
            text = printable(value)
            shown = f"\x1b[{colour}m{text}\x1b[0m" if colour else text
            yield f"{indent}{printable(key):<{width}}  {shown}"


def one_line_json(value: Any) -> str:
    """JSON on one line; numbers that are not finite are null, because JSON has none."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not isfinite(value) else value

    return json_module.dumps(finite(value), allow_nan=False)


class StopAfter:
    """True once a signal has arrived or the given hours are over."""

    def __init__(self, hours: float | None) -> None:
        from dreamsa.signals import stop_on_signals

        if hours is not None and not 0 < hours <= 10_000:
            raise ValueError(f"hours must lie in (0, 10000], got {hours:g}.")
        self.signals = stop_on_signals()
        self.deadline = None if hours is None else time.monotonic() + 3600 * hours

    def __call__(self) -> bool:
        return bool(self.signals) or (
            self.deadline is not None and time.monotonic() > self.deadline
        )


def print_lines(lines: Iterable[str], stop: StopAfter) -> None:
    """Print a comparison's lines as they come; after a stop, how to continue."""
    for line in lines:
        print(line, flush=True)
    if stop():
        command = shlex.join(["dreamsa", *sys.argv[1:]])
        print(f"Stopped and saved. Continue with the same command: {command}", file=sys.stderr)
        raise SystemExit(128 + stop.signals[0] if stop.signals else 3)
