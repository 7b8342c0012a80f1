"""A run's claim: by the process that was sent last, and by nobody else."""

import os

import pytest

from ringfence_policy.errors import ScenarioBusy
from ringfence_server.control.run_claim import claimed, give_order, held, process_of, withdraw_order


def sent(directory, **order):
    with held(directory) as is_free:
        assert is_free
        return give_order(directory, order)


def was_claimed(directory):
    with held(directory) as is_free:
        assert is_free
        return withdraw_order(directory)


def test_who_was_sent_carries_the_run_out_and_is_found(tmp_path):
    sending = sent(tmp_path / "run", seed=7)
    with claimed(tmp_path / "run", sending) as order:
        assert order["seed"] == 7
        assert process_of(tmp_path / "run") == os.getpid()
        with held(tmp_path / "run") as is_free:
            assert not is_free
    assert process_of(tmp_path / "run") is None
    assert was_claimed(tmp_path / "run")


@pytest.mark.parametrize("since", [sent, was_claimed], ids=["sent again", "withdrawn"])
def test_who_was_sent_before_comes_too_late(tmp_path, since):
    sending = sent(tmp_path)
    since(tmp_path)
    with pytest.raises(ScenarioBusy), claimed(tmp_path, sending):
        raise AssertionError("claimed")
    assert not was_claimed(tmp_path)


def test_who_finds_another_run_going_on_has_done_nothing(tmp_path):
    sending = sent(tmp_path)
    with pytest.raises(ScenarioBusy, match="another"), claimed(tmp_path, sending):
        raise ScenarioBusy("another run is going on")
    assert not was_claimed(tmp_path)


def test_a_new_order_knows_nothing_of_the_claim_before(tmp_path):
    with claimed(tmp_path, sent(tmp_path)):
        pass
    sent(tmp_path)
    assert not was_claimed(tmp_path)
