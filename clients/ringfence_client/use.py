"""What permitted uses do with data: each in its own holder's workroom, and those of one kind of workroom together."""

from collections.abc import Sequence

from ringfence_client.enforcement import Prepared
from ringfence_client.workroom import Result, UseOrder, Workroom
from ringfence_policy.errors import Fault


def use_together(uses: Sequence[Prepared]) -> list[Result | Fault | None]:
    """Carry out permitted uses.

    Args:
        uses: Permitted and reserved uses of any holders.

    Returns:
        For each use its result, None where the stored reply is to be sent again, or the fault that stopped it.
    """
    by_kind: dict[type[Workroom], list[Prepared]] = {}
    for use in uses:
        if use.stored is None:
            by_kind.setdefault(type(use.node.workroom), []).append(use)
    results: dict[int, Result | Fault] = {}
    for kind, its_uses in by_kind.items():
        done = kind.carry_out([(use.node.workroom, _order(use)) for use in its_uses])
        results |= zip(map(id, its_uses), done, strict=True)
    return [results.get(id(use)) for use in uses]


def _order(use: Prepared) -> UseOrder:
    return UseOrder(
        holder_id=use.node.holder_id,
        plan=use.terms.plan,
        action=use.request.action,
        round_number=use.request.round_number,
        arrays=use.arrays,
        mechanism=use.mechanism,
        trainer=use.trainer,
        weight=use.node.home.profile.dataset.weight,
        rehearsal_seed=use.terms.rehearsal_seed,
    )
