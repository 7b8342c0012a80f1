"""Writes the answers of a form into a policy's TOML, line by line, so that its comments and all other lines stay."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A line of the policy that the form knows.

    Attributes:
        table: The TOML table that it stands in.
        key: Its key.
        label: What the form asks.
        hint: What it does.
        quoted: Whether its value is text, as exact decimals are.
    """

    table: str
    key: str
    label: str
    hint: str
    quoted: bool


LINES = (
    Line(
        "privacy",
        "epsilon",
        "Privacy budget (epsilon)",
        "The whole of it, for all rounds together. Less is more private.",
        quoted=True,
    ),
    Line(
        "settings", "min_holders", "Fewest data holders in a round", "Below that, your data is not used.", quoted=False
    ),
    Line("projects", "max_rounds", "Most rounds", "Over the life of this policy.", quoted=False),
    Line("data", "min_records", "Fewest records", "With fewer than that, your data is not used.", quoted=False),
    Line("outputs", "retention_days", "Days that results may be kept", "Counted from their release.", quoted=False),
)


def value_of(text: str, table: str, key: str) -> str:
    """What stands at a key, without quotes; "" where it does not stand on one line of its own."""
    found = _place(text, table, key)
    return "" if found is None else text[found[0] : found[1]].strip().strip('"')


def list_of(text: str, table: str, key: str) -> tuple[str, ...]:
    """The words of a list at a key."""
    found = _place(text, table, key)
    return () if found is None else tuple(re.findall(r'"([^"\n]*)"', text[found[0] : found[1]]))


def written(text: str, changes: Mapping[tuple[str, str], str]) -> str:
    r"""The text with other values at keys of it; a key that is not there is added to its table.

    Args:
        text: A policy.
        changes: (table, key) to a value as TOML.

    >>> written('[privacy]\nepsilon = "2" # why\n', {("privacy", "epsilon"): '"1"'})
    '[privacy]\nepsilon = "1" # why\n'
    """
    for (table, key), value in changes.items():
        found = _place(text, table, key)
        if found is not None:
            text = text[: found[0]] + value + text[found[1] :]
        elif (head := re.search(rf"^\[{re.escape(table)}\][^\n]*\n", text, flags=re.MULTILINE)) is not None:
            text = f"{text[: head.end()]}{key} = {value}\n{text[head.end() :]}"
    return text


def next_version(text: str) -> str:
    """The text with its version raised by one."""
    version = value_of(text, "policy", "version")
    return written(text, {("policy", "version"): str(int(version) + 1)}) if version.isdecimal() else text


def toml_text(value: str) -> str:
    """Text as a TOML string. What a policy cannot hold is refused where it is read."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def toml_list(values: tuple[str, ...]) -> str:
    """Words as a TOML list."""
    return f"[{', '.join(toml_text(one) for one in values)}]"


def _place(text: str, table: str, key: str) -> tuple[int, int] | None:
    """From where to where the value of a key stands."""
    head = re.search(rf"^\[{re.escape(table)}\][^\n]*$", text, flags=re.MULTILINE)
    if head is None:
        return None
    end = re.search(r"^\[", text[head.end() :], flags=re.MULTILINE)
    until = head.end() + end.start() if end else len(text)
    value = r'("[^"\n]*"|\[[^\]]*\]|[^#\n]*?)'
    found = re.compile(rf"^{re.escape(key)}\s*=\s*{value}[ \t]*(?:#[^\n]*)?$", flags=re.MULTILINE).search(
        text, head.end(), until
    )
    return None if found is None else found.span(1)
