"""Which files an evidence bundle holds, by name.

manifest.jws                      the coordinator's signed list of all the others, by digest
plan.jws                          the signed training plan
claims.json                       what the run says it cost, per data holder
model.safetensors                 the result, when there is one
coordinator/keys.jws              key list, log and signed checkpoint of the coordinator
coordinator/log.jsonl
coordinator/checkpoint.jws
holders/<id>/keys.jws             the same for each holder of the plan, and its signed terms
holders/<id>/log.jsonl
holders/<id>/checkpoint.jws
holders/<id>/status.jws           this and the next two: at least where the holder's data was used in the run
holders/<id>/participation.jws
holders/<id>/policy-<policy id>-<version>.jws      one or more
"""

from collections.abc import Iterable
from typing import Final

MANIFEST: Final = "manifest.jws"
PLAN: Final = "plan.jws"
CLAIMS: Final = "claims.json"
MODEL: Final = "model.safetensors"
KEYS: Final = "keys.jws"
LOG: Final = "log.jsonl"
CHECKPOINT: Final = "checkpoint.jws"
STATUS: Final = "status.jws"
PARTICIPATION: Final = "participation.jws"

_OF_EVERY_LOG: Final = (KEYS, LOG, CHECKPOINT)
_OF_A_HOLDER: Final = (STATUS, PARTICIPATION)


def coordinator_file(name: str) -> str:
    """The path of one of the coordinator's files."""
    return f"coordinator/{name}"


def holder_file(holder_id: str, name: str) -> str:
    """The path of one of a holder's files."""
    return f"holders/{holder_id}/{name}"


def policy_file(holder_id: str, policy_id: str, version: int) -> str:
    """The path of one version of a holder's policy."""
    return holder_file(holder_id, f"policy-{policy_id}-{version}.jws")


def holders_in(names: Iterable[str]) -> tuple[str, ...]:
    """The holders that have any file here, sorted."""
    return tuple(sorted({name.split("/")[1] for name in names if name.startswith("holders/")}))


def policies_in(names: Iterable[str], holder_id: str) -> tuple[str, ...]:
    """The paths of a holder's policies, sorted."""
    return tuple(sorted(name for name in names if name.startswith(holder_file(holder_id, "policy-"))))


def misplaced(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Files that belong in a bundle of these holders and are missing, and files that do not belong in it."""
    found = set(names)
    needed = {MANIFEST, PLAN, CLAIMS, *map(coordinator_file, _OF_EVERY_LOG)}
    allowed = {MODEL}
    for holder in holders_in(found):
        needed |= {holder_file(holder, name) for name in _OF_EVERY_LOG}
        allowed |= {holder_file(holder, name) for name in _OF_A_HOLDER}
        policies = policies_in(found, holder)
        allowed |= {name for name in policies if name.count("/") == 2 and name.endswith(".jws")}  # noqa: PLR2004
    return tuple(sorted(needed - found)), tuple(sorted(found - needed - allowed))
