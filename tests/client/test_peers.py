import pytest
from tiny_run import TinyRun

from ringfence_client.peers import known_peers, meet_peers
from ringfence_policy.errors import TrustRefused
from ringfence_policy.identity import SigningKey


def test_holders_that_only_the_plan_names_do_not_count_towards_min_holders(tiny_scenario):
    """A coordinator writes the plan, so it could invent the company that a policy asks for."""
    run = TinyRun(tiny_scenario(policies={"elm": {"settings.min_holders": 3}}))
    run.home("elm").peers.unlink()
    (outcome,) = run.train(rounds=1)
    refused = {refusal.holder: refusal.clauses for refusal in outcome.refused}
    run.close()
    assert refused == {"elm": ("min_holders",)}


def test_a_plan_that_gives_a_known_holder_another_root_key_is_refused(tiny_scenario):
    run = TinyRun(tiny_scenario())
    home = run.home("elm")
    stranger = SigningKey.generate("oak/root-1").public()
    known = known_peers(home)
    other = next(iter(known))
    home.peers.unlink()
    meet_peers(home, known | {other: stranger})
    run.propose()
    denial = run.governor.absent["elm"]
    run.close()
    assert denial.clauses == ("plan",)


def test_a_known_holder_is_never_taken_for_another(tiny_scenario):
    run = TinyRun(tiny_scenario())
    home = run.home("elm")
    other = next(iter(known_peers(home)))
    with pytest.raises(TrustRefused, match="another root key"):
        meet_peers(home, {other: SigningKey.generate("oak/root-9").public()})
    run.close()
