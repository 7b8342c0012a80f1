"""What tests of refusals look at: who refused where and why, and that nothing left."""

from ringfence_policy.protocol import Offer

BEFORE_TRAINING, BEFORE_UPLOAD = "node-before-training", "node-before-upload"


def refusals(outcome):
    return {one.holder: (one.point, one.clauses) for one in outcome.refused}


def sent_rounds(run, holder):
    return [record["round"] for record in run.log_of(holder, "sent")]


def holds(run, holder, state):
    return [hold for hold in run.node(holder).ledger.holds(run.file.run_id) if hold.state is state]


def offer_of(run):
    return Offer(run_id=run.file.run_id, round_number=1, plan_digest=run.plan.digest, known_size=0)


def assert_nothing_left(run, holder):
    """Nothing was sent, nothing is spent and nothing is held."""
    assert run.log_of(holder, "sent") == []
    assert run.log_of(holder, "evaluated") == []
    assert run.spent(holder) == 0
    assert run.node(holder).outbox.waiting(run.file.run_id) == []
