"""Comparison lines are training without privacy: they exist only where every holder's signed policy allows that."""

from tiny_run import TinyRun

from ringfence_client.comparison import compare
from ringfence_client.officer import revoke, sign_policy
from ringfence_policy.ledger import now_ms


def test_no_comparison_line_is_drawn_where_one_policy_forbids_rehearsals(tiny_scenario):
    run = TinyRun(tiny_scenario(policies={"elm": {"data.rehearsal": "forbidden"}}))
    lines = compare(run.file.holder_directories, run.plan, measured_on=run.node_ids)
    run.close()
    assert set(lines) == {"note"}
    assert "elm" in lines["note"]
    assert "forbids any use without privacy" in lines["note"]


def test_what_counts_is_the_policy_as_signed_and_not_as_edited(tiny_scenario):
    scenario = tiny_scenario(policies={"elm": {"data.rehearsal": "forbidden"}})
    run = TinyRun(scenario)
    path = scenario.holder("elm") / "policy.toml"
    path.write_text(path.read_text().replace('"forbidden"', '"allowed"').replace("version = 1", "version = 2"))
    assert set(compare(run.file.holder_directories, run.plan, measured_on=run.node_ids)) == {"note"}
    sign_policy(run.home("elm"))
    assert {"federated", "local", "pooled"} <= set(
        compare(run.file.holder_directories, run.plan, measured_on=run.node_ids)
    )
    run.close()


def test_a_holder_that_revoked_is_left_out_of_the_comparison_lines_too(tiny_scenario):
    run = TinyRun(tiny_scenario())
    revoke(run.home("elm"), reason="no longer", now_ms=now_ms())
    lines = compare(run.file.holder_directories, run.plan, measured_on=run.node_ids)
    run.close()
    assert lines["left_out"] == ["elm"]
    assert "elm" not in lines["federated"]["per_holder"]


def test_a_holder_whose_policy_names_somebody_else_is_left_out_too(tiny_scenario):
    run = TinyRun(tiny_scenario(policies={"elm": {"people.who": ["somebody-else"]}}))
    lines = compare(run.file.holder_directories, run.plan, measured_on=run.node_ids)
    run.close()
    assert lines["left_out"] == ["elm"]
    assert "elm" not in lines["local"]["per_holder"]


def test_a_holder_that_requires_a_sandbox_is_left_out_too(tiny_scenario):
    run = TinyRun(tiny_scenario(policies={"elm": {"settings.sandbox": None}}))
    lines = compare(run.file.holder_directories, run.plan, measured_on=run.node_ids)
    run.close()
    assert lines["left_out"] == ["elm"]
    assert "elm" not in lines["pooled"]["per_holder"]
