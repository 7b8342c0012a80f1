"""A holder reads its data only by the schema that its data officer agreed to: bounds are questions about records."""

from tiny_run import TinyRun

from ringfence_client.officer import agree_to_schema


def test_a_plan_with_a_schema_nobody_agreed_to_reads_no_data(tiny_scenario, monkeypatch):
    """Bounds cut to fit one record would tell whether it is there."""
    scenario = tiny_scenario()
    TinyRun(scenario).close()
    path = scenario.directory / "schema.toml"
    path.write_text(path.read_text().replace('high = "10"', 'high = "9.999"'))
    run = TinyRun(scenario)

    def read(*_):
        raise AssertionError("data was read")

    with monkeypatch.context() as patched:
        patched.setattr("ringfence_client.holder_records.load_dataset", read)
        run.propose()
    refused = {holder: denial.clauses for holder, denial in run.governor.absent.items()}
    assert refused == dict.fromkeys(run.node_ids, ("plan",))
    agree_to_schema(run.home("elm"))
    run.propose()
    assert set(run.governor.views) == {"elm"}
    run.close()
