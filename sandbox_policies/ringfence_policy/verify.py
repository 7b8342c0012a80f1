"""Verifying an evidence bundle offline, with nothing but the bundle and the root public keys.

`verify_bundle` never raises for a bad bundle: what does not hold is a failed check that says which holder, which round
and which record. What a passed verification proves, and what it cannot prove, is in docs/evidence.md; `UNPROVEN` below
is the short form that stands in every report.

Cannot be proved by any bundle, and is not claimed:

* That a holder's machine did what its log says: that the noise was drawn, the rows were clipped, the count of records
  was true, the walls around them stood, or that no use was left out of the log and sent some other way. Logs bind their
  writers to one story; they do not look inside the machine.
* That the aggregate was computed from the committed updates, or the released model from the rounds it names. Updates
  are not in the bundle (they are private); their digests are.
* That a coordinator and a holder who act together did not both re-write their logs before anyone else saw a checkpoint.
* When something happened, beyond the order in which each log saw the other: times are each writer's own clock.
* That a refusal for a reason outside the policy (a signature, a plan, too few records, the dataset's own budget) was
  right.
* That an update of which the coordinator says that it did not hear it in time never came: its holder's log says that it
  left, and nothing that it arrived.
* That an update which was sent reached nobody else, and anything about what other machines, copies of the data or runs
  under another dataset id did.
"""

import json
from pathlib import Path
from typing import Any, Final

from ringfence_policy.bundle import read_bundle
from ringfence_policy.errors import TrustRefused, UsageError
from ringfence_policy.evidence_budget import check_budget
from ringfence_policy.evidence_decisions import check_decisions, is_rehearsal
from ringfence_policy.evidence_exchange import check_exchange
from ringfence_policy.evidence_papers import Evidence, Roots, open_papers
from ringfence_policy.evidence_rounds import check_rounds
from ringfence_policy.identity import PublicKey
from ringfence_policy.verification import Check, Findings, Verification, attempt

__all__ = ["UNPROVEN", "Check", "Roots", "Verification", "read_roots", "roots_document", "verify_bundle"]

UNPROVEN: Final = (
    "that a holder's machine did what its log says (noise drawn, rows clipped and counted, walls up, no use left out)",
    "that the aggregate and the released model were computed from the committed updates",
    "that a coordinator and a holder acting together did not re-write their logs before anyone else saw a checkpoint",
    "that the accuracy and AUC in the summary and the report are what the holders measured",
    "when something happened, beyond the order in which each log saw the other",
    "that a refusal for a reason outside the policy was right",
    "that an update of which the coordinator says that it did not hear it in time never came",
    "what happened outside these logs: other copies of the data, other dataset ids, other recipients of an update",
)
_LARGEST_ROOTS_BYTES = 16 * 1024 * 1024


def verify_bundle(path: Path, roots: Roots, *, now_ms: int | None = None) -> Verification:
    """Make every check that the bundle and the root keys allow.

    Args:
        path: The bundle.
        roots: The root public keys, learnt from their owners and not from the bundle.
        now_ms: The present, to refuse a bundle dated in the future; not judged when left out.

    Returns:
        The outcome. A check that could not be made has failed.
    """
    findings = Findings()
    files: dict[str, bytes] = {}
    with findings.checking("bundle", passed="in its one byte form"):
        files = read_bundle(path)
    evidence: Evidence | None = None
    if files:
        evidence = attempt(
            lambda: open_papers(files, roots, findings, now_ms=now_ms),
            report=lambda problem: findings.checks.append(Check("papers", passed=False, detail=problem)),
            where="the bundle",
        )
    if evidence is None:
        findings.skipped("everything else", "the bundle, its manifest, its plan or the coordinator's log does not hold")
        return Verification(tuple(findings.checks), run_id="", rehearsal=False)
    for check in (check_exchange, check_rounds, check_decisions, check_budget):
        check(evidence, findings)
    return Verification(tuple(findings.checks), evidence.run_id, is_rehearsal(evidence))


def roots_document(roots: Roots) -> dict[str, Any]:
    """The root keys as the JSON document that `read_roots` reads."""
    return {
        "coordinator": {"id": roots.coordinator_id, "jwk": roots.coordinator.jwk},
        "holders": {holder: key.jwk for holder, key in sorted(roots.holders.items())},
    }


def read_roots(path: Path) -> Roots:
    """Read a file of root public keys: {"coordinator": {"id", "jwk"}, "holders": {"<id>": jwk}}.

    Raises:
        UsageError: The file cannot be read or does not hold public keys in this form.
    """
    if not path.is_file():
        raise UsageError(
            "no such file",
            expected="a file of root keys",
            where=str(path),
            next_step="collect each holder's root key from the holder itself, never from the bundle",
        )
    try:
        if path.stat().st_size > _LARGEST_ROOTS_BYTES:
            return _roots(None)
        return _roots(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, TrustRefused) as error:
        raise UsageError(
            "not a file of root keys",
            expected='JSON {"coordinator": {"id": ..., "jwk": ...}, "holders": {"<id>": <jwk>, ...}} with public keys',
            got=" ".join(str(error).split())[:200] or type(error).__name__,
            where=str(path),
            next_step="collect each holder's root key from the holder itself, never from the bundle",
        ) from None


def _roots(document: Any) -> Roots:
    if set(document) != {"coordinator", "holders"} or set(document["coordinator"]) != {"id", "jwk"}:
        raise ValueError("other members")
    coordinator_id = document["coordinator"]["id"]
    if not isinstance(coordinator_id, str):
        raise TypeError("the coordinator's id is not text")
    return Roots(
        coordinator_id=coordinator_id,
        coordinator=PublicKey.from_jwk(document["coordinator"]["jwk"]),
        holders={str(holder): PublicKey.from_jwk(jwk) for holder, jwk in document["holders"].items()},
    )
