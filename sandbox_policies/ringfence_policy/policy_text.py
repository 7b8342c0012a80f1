"""Write a policy as the TOML a data officer edits, each clause under its sentence in plain English."""

from datetime import datetime
from enum import StrEnum

from ringfence_policy.cedar_text import quoted
from ringfence_policy.clauses import CLAUSES
from ringfence_policy.policy import EVERYTHING, UsagePolicy, rfc3339, toml_keys
from ringfence_policy.wording import delta_text, epsilon_text


def to_toml(policy: UsagePolicy) -> str:
    """The policy as TOML that reads back equal, with every clause's sentence as a comment above it."""
    sentences = {
        (clause.table, clause.toml_key): clause.sentence(policy) for clause in CLAUSES.values() if clause.table
    }
    blocks: list[str] = []
    for table, keys in toml_keys().items():
        lines = [f"[{table}]"]
        for key, attribute in keys.items():
            value = getattr(policy, attribute)
            if value is None:
                continue
            if (table, key) in sentences:
                lines.append(f"# {sentences[table, key]}")
            lines.append(f"{key} = {_written(attribute, value)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _written(attribute: str, value: object) -> str:
    match value:
        case StrEnum():
            text = quoted(value.value)
        case str():
            text = quoted(value)
        case datetime():
            text = rfc3339(value)
        case tuple():
            is_all = value == EVERYTHING and attribute in {"tasks", "columns"}
            text = quoted("*") if is_all else "[" + ", ".join(quoted(str(item)) for item in value) + "]"
        case int() if attribute.endswith("_micro"):
            text = quoted(epsilon_text(value))
        case int() if attribute.endswith("_pico"):
            text = quoted(delta_text(value))
        case _:
            text = str(value)
    return text
