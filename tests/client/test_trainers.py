import logging

import own_models
import pytest

from ringfence_client import open_workroom
from ringfence_client.models import code_digest
from ringfence_client.trainers import _chosen, choose_trainer, trainer_named
from ringfence_policy import strict_toml
from ringfence_policy.errors import DocumentInvalid, EvidenceRefused
from ringfence_policy.evidence_records import parse_record
from ringfence_policy.plan import PlanFile
from ringfence_server.conversation import read_refusal

LOGISTIC = {"kind": "logistic-regression"}


def own(name: str) -> dict[str, object]:
    path = f"own_models:{name}"
    return {"kind": "module", "path": path, "code_digest": code_digest(path), "seed": 4}


def chosen(model, wanted="auto") -> str:
    return choose_trainer(model, own_models.FEATURES, wanted=wanted)


def test_auto_takes_the_fastest_trainer_that_fits_the_model():
    assert chosen(LOGISTIC) == "cohort"
    assert chosen({"kind": "mlp", "hidden": (4,), "seed": 1}) == "cohort"
    assert chosen(own("Transformer")) == "book-keeping"


def test_auto_takes_opacus_where_book_keeping_does_not_know_a_layer_and_says_why(caplog):
    _chosen.cache_clear()
    with caplog.at_level(logging.INFO, logger="ringfence_client.trainers"):
        assert chosen(own("OwnParameter")) == "opacus"
    assert "trained parameters in OwnParameter" in caplog.text


def test_a_model_that_nothing_can_train_is_refused():
    with pytest.raises(DocumentInvalid, match="record by record"):
        chosen(own("Normalised"))


@pytest.mark.parametrize("name", ["opacus", "book-keeping", "cohort"])
def test_a_named_trainer_is_taken_where_it_can_train_the_model(name):
    assert chosen(LOGISTIC, wanted=name) == name


@pytest.mark.parametrize(
    ("wanted", "model"), [("opacus", "Normalised"), ("book-keeping", "OwnParameter"), ("cohort", "Transformer")]
)
def test_a_named_trainer_that_cannot_train_the_model_is_refused(wanted, model):
    with pytest.raises(DocumentInvalid, match="cannot"):
        chosen(own(model), wanted=wanted)


@pytest.mark.parametrize(
    ("wanted", "trainer"), [("auto", "cohort"), ("book-keeping", "book-keeping"), ("opacus", "opacus")]
)
def test_what_trained_is_in_the_holders_evidence_and_in_the_reply_it_keeps(tiny_run, wanted, trainer):
    run = tiny_run(plan={"training.trainer": wanted})
    run.propose()
    run.governor.offer(run.grid, 1)
    first = run.request("elm")
    assert not first.has_error()
    assert [record["trainer"] for record in run.log_of("elm", "sent")] == [trainer]
    again = run.request("elm")
    assert not again.has_error()
    assert [record["trainer"] for record in run.log_of("elm", "sent")] == [trainer]
    (kept,) = run.node("elm").outbox._database.rows("SELECT description FROM outbox")
    assert f'"trainer": "{trainer}"' in kept[0]


def test_a_trainer_that_cannot_train_the_plans_model_is_refused_before_data_is_opened(tiny_run, monkeypatch):
    model = {"model.kind": "module", "model.path": "own_models:OwnParameter"}
    digest = code_digest("own_models:OwnParameter")
    run = tiny_run(plan={**model, "model.code_digest": digest, "training.trainer": "book-keeping"})
    run.propose()
    run.governor.offer(run.grid, 1)
    before, opened = run.spent("elm"), []
    monkeypatch.setattr(open_workroom, "_job", opened.append)
    assert read_refusal(run.request("elm")).clauses
    assert opened == []
    assert run.spent("elm") == before


def test_a_plan_with_an_unknown_trainer_is_refused_with_the_words_there_are(tiny_scenario):
    path = tiny_scenario(plan={"training.trainer": "fastest"}).directory / "plan.toml"
    with pytest.raises(DocumentInvalid, match="book-keeping"):
        strict_toml.read_toml(path, PlanFile)


def test_a_record_of_an_unknown_trainer_is_refused_and_an_older_one_without_it_is_read(tiny_run):
    run = tiny_run()
    run.propose()
    run.governor.offer(run.grid, 1)
    run.request("elm")
    (record,) = run.log_of("elm", "sent")
    assert parse_record(record).trainer == "cohort"
    with pytest.raises(EvidenceRefused, match="trainer"):
        parse_record({**record, "trainer": "my own"})
    del record["trainer"]
    assert parse_record(record).trainer == "opacus"


def test_every_trainer_has_a_name():
    assert trainer_named("opacus").name == "opacus"
    assert trainer_named("book-keeping").name == "book-keeping"
