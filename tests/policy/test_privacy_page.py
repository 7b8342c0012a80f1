"""docs/privacy.md and decision 6 show numbers; they have to be the accountant's own."""

import re
from pathlib import Path

from ringfence_policy import accounting
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.vocabulary import Relation, Unit

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "privacy.md").read_text(encoding="utf-8").split("## A person with several records")[0]
NOISE = float(re.search(r"noise multiplier\s+([\d.]+\d)", PAGE)[1])


def epsilon(rounds, *, delta=1e-4, relation=Relation.ADD_OR_REMOVE):
    mechanism = DpMechanism(
        kind="dp-sgd",
        clipping_norm=0.5,
        noise_multiplier=NOISE,
        sampling_rate=1.0,
        steps=1,
        unit=Unit.RECORD,
        relation=relation,
    )
    return accounting.epsilon(((mechanism, rounds),), delta=delta)


def test_the_table_of_rounds_is_what_the_ledger_would_say():
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, flags=re.MULTILINE)
    assert [int(rounds) for rounds, _, _ in rows] == [1, 2, 5, 10, 20]
    for rounds, composed, added in rows:
        assert composed == f"{epsilon(int(rounds)):.3f}"
        assert added == f"{int(rounds) * epsilon(1):.3f}"


def test_the_same_rounds_read_otherwise_cost_what_the_page_says():
    assert f"| 10, read at delta 1e-6 | {epsilon(10, delta=1e-6):.3f} |" in PAGE
    assert f"| 10, read as replace-one | {epsilon(10, relation=Relation.REPLACE_ONE):.3f} |" in PAGE


def test_the_decision_record_quotes_the_same_numbers():
    record = (DOCS / "decisions" / "0006-ledger-of-events-not-numbers.md").read_text(encoding="utf-8")
    assert f"ten uses of {epsilon(1):.3f} cost {epsilon(10):.2f} together and not {10 * epsilon(1):.2f}" in record
