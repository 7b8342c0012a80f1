"""A holder whose clock runs ahead and is put right: it refuses for a while, and nothing of its budget is touched."""

from ringfence_policy.ledger import now_ms

MINUTE_MS = 60_000


def test_a_clock_that_ran_ahead_and_is_right_again_keeps_its_holder_out_until_that_time_has_come(tiny_run):
    """Its status is dated by the clock that ran ahead, and a date never goes back: it fails closed."""
    run = tiny_run(seed=3)
    run.propose()

    def refusals(*ahead, by):
        for one in ahead:
            one.clock = lambda: now_ms() + by * MINUTE_MS
        run.governor.offer(run.grid, 1)
        return {holder: denial.clauses for holder, denial in run.governor.absent.items()}

    elm, everybody = run.node("elm"), [run.coordinator, *map(run.node, run.node_ids)]
    assert refusals(by=0) == {}
    assert refusals(elm, by=20) == {"elm": ("signature",)}  # so says the coordinator, to whom that date has not come
    assert refusals(elm, by=0) == {"elm": ("status",)}
    assert refusals(*everybody, by=21) == {}
    assert run.spent("elm") == 0
