"""A run's results as files: summary.json, report.html, model.safetensors, evidence.zip and the root keys for it."""

import json
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from ringfence_policy import canonical
from ringfence_policy.accounting import accountant_of
from ringfence_policy.clauses import explain
from ringfence_policy.decision import Decision
from ringfence_policy.durable import write_durably
from ringfence_policy.mechanism import History
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.protocol import EvidenceReply, Standing
from ringfence_policy.verify import Verification, roots_document, verify_bundle
from ringfence_policy.vocabulary import PURPOSES, Unit
from ringfence_server.coordinator import Coordinator
from ringfence_server.evidence import roots_of_run
from ringfence_server.governor import Governor
from ringfence_server.outcome import Scores
from ringfence_server.run_file import RunFile

_READABLE = 0o644  # results are for others to read, unlike keys and ledgers

TRUSTED = (
    "each data holder, with its own records, its own noise and its own ledger",
    "the coordinator, with keeping the run going: it sees noised updates, signed papers and permitted measurements",
    "the operating system's random source of each data holder",
)
SEVERAL_RECORDS = {
    Unit.RECORD: "a person with several records: the unit of privacy here is one record, and a person's records add up",
    Unit.SUBJECT: "a person who stands under several identifiers: the unit of privacy here is one identifier's records",
}
NOT_COVERED = (
    "a person whose records lie with several data holders: their budgets add up",
    "facts about a data holder as a whole, such as its declared weight, and that it took part",
    "timing and size of messages",
    "what is learned about everyone from the model, whether or not a person's record was in it",
)
EXACT_NOT_COVERED = "the exact scores on test records, which these policies allow: they are not differentially private"
NO_UNLEARNING = "rounds before a revocation: their updates stay in the model and their budget stays spent"


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything a finished run leaves, before it is written."""

    run: RunFile
    plan: TrainingPlan
    coordinator: Coordinator
    governor: Governor
    at_start: Mapping[str, Standing]
    model: Mapping[str, npt.NDArray[np.float32]] | None
    not_released: Mapping[str, Decision] | None
    final: Scores | None
    references: Mapping[str, Any]
    evidence: Mapping[str, EvidenceReply]
    bundle: Path
    timings: dict[str, float]
    began: float

    @property
    def status(self) -> str:
        """Whether a model was released."""
        return "completed" if self.not_released is None else "stopped"


def write_results(results: Results) -> dict[str, Any]:
    """Verify the evidence as a stranger would, and write all result files.

    Returns:
        The summary.
    """
    out = Path(results.run.out)
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if results.model is not None:
        write_durably(out / "model.safetensors", save(dict(results.model)), mode=_READABLE)
    if results.bundle.resolve() != (out / "evidence.zip").resolve():
        shutil.copyfile(results.bundle, out / "evidence.zip")
    roots = roots_of_run(results.run)
    write_durably(out / "roots.json", json.dumps(roots_document(roots), indent=1).encode(), mode=_READABLE)
    verification = verify_bundle(out / "evidence.zip", roots)
    results.timings["evidence"] += time.monotonic() - started
    summary = summarise(results, verification)
    # Imported here: drawing takes a second to import and is needed once, at the very end.
    from ringfence_server.report import write_report  # noqa: PLC0415

    started = time.monotonic()
    summary["timings"]["report"] = 0.0
    write_report(summary, out / "report.html")
    summary["timings"]["report"] = round(time.monotonic() - started, 3)
    summary["timings"]["total"] = round(time.monotonic() - results.began, 3)
    write_durably(out / "summary.json", json.dumps(summary, indent=1).encode(), mode=_READABLE)
    return summary


def summarise(results: Results, verification: Verification) -> dict[str, Any]:
    """The summary, from which the report is made."""
    run, plan, terms = results.run, results.plan, results.plan.terms
    timings = {name: round(seconds, 3) for name, seconds in results.timings.items()}
    references = results.references
    return {
        "run_id": run.run_id,
        "scenario": run.scenario,
        "title": terms.title,
        "plan_digest": plan.digest,
        "started_at": run.started_at,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": results.status,
        "reason": _reason(results),
        "rehearsal": plan.rehearsal,
        "private": not plan.rehearsal,
        "plan": {
            "purpose": {"id": terms.purpose, "label": PURPOSES[terms.purpose].label},
            "task": terms.task,
            "coordinator": terms.coordinator,
            "strategy": terms.training.strategy,
            "model": terms.model.kind if terms.model.kind != "module" else terms.model.path,
            "rounds": terms.training.rounds,
            "steps": terms.training.steps,
            "clipping_norm": float(terms.training.clipping_norm),
            "sampling_rate": float(terms.training.sampling_rate),
            "learning_rate": float(terms.training.learning_rate),
            "average_last": float(terms.training.average_last),
        },
        "holders": {holder_id: _holder(results, holder_id) for holder_id in sorted(run.cards)},
        "rounds": [outcome.to_document() for outcome in results.governor.outcomes],
        "metrics": {
            "federated_private": None if results.final is None else vars(results.final),
            **{line: _scores(references.get(line)) for line in ("federated", "local", "pooled")},
        },
        "curves": {"federated": (references.get("federated") or {}).get("curve", [])},
        "local_elsewhere": (references.get("local") or {}).get("elsewhere"),
        "references_note": references.get("note") or _references_note(references),
        "privacy": _privacy(results),
        "preview": _preview(Path(run.directory)),
        "evidence": {
            "verified": verification.passed,
            "checks": [vars(check) for check in verification.checks],
            "bundle": "evidence.zip",
            "digest": canonical.digest_bytes(results.bundle.read_bytes()),
        },
        "timings": timings | {"total": round(time.monotonic() - results.began, 3)},
        "environment": environment(),
    }


def environment() -> dict[str, str]:
    """Versions that figures depend on."""
    versions = {}
    for package in ("torch", "flwr", "opacus", "ringfence"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return {"python": sys.version.split()[0], "platform": f"{platform.system()} {platform.machine()}", **versions}


def _references_note(references: Mapping[str, Any]) -> str:
    note = "The comparison lines are computed without privacy, on published data whose policies allow it."
    if references["left_out"]:
        note += f" They leave out {', '.join(references['left_out'])}, whose policy does not permit it (any more)."
    local = references["local"]
    elsewhere = [one["accuracy"] for one in local["elsewhere"].values() if one["accuracy"] is not None]
    if not elsewhere or local["accuracy"] is None:
        return note
    return (
        f"{note} A holder's own model knows its own patients or customers: it is right in {local['accuracy']:.1%} of "
        f"its own test rows, but on average in {sum(elsewhere) / len(elsewhere):.1%} of the other holders'."
    )


def _preview(directory: Path) -> list[dict[str, Any]]:
    path = directory / "preview.json"
    previews: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return previews


def _reason(results: Results) -> str | None:
    if results.not_released is not None:
        names = "; ".join(f"{holder}: {', '.join(d.clauses)}" for holder, d in sorted(results.not_released.items()))
        return f"the model was not released: {names}"
    planned = results.plan.terms.training.rounds
    committed = len({outcome.round for outcome in results.governor.outcomes if outcome.committed})
    return None if committed == planned else f"{committed} of {planned} rounds were committed"


def _holder(results: Results, holder_id: str) -> dict[str, Any]:
    run, governor = results.run, results.governor
    card, view = run.cards[holder_id], governor.views.get(holder_id)
    start = results.at_start.get(holder_id)
    evidence = results.evidence.get(holder_id)
    mechanism = governor.mechanisms.get(holder_id)
    rounds = len({o.round for o in governor.outcomes if o.committed and holder_id in o.cohort})
    document: dict[str, Any] = {
        "name": card["name"],
        "region": card["region"],
        "weight": card["weight"],
        "epsilon": 0.0 if evidence is None else evidence.dataset_epsilon_micro / 1e6,
        "delta": None if evidence is None else evidence.dataset_delta_pico / 1e12,
        "epsilon_cap": None,
        "epsilon_at_start": None if start is None else start.dataset_epsilon_micro / 1e6,
        "rounds": rounds,
        "policy": None,
        "sentences": [],
        "evaluation": None if start is None else start.evaluation.value,
        "noise_multiplier": None if mechanism is None else mechanism.noise_multiplier,
        "clipping_norm": None if mechanism is None else mechanism.clipping_norm,
        "sampling_rate": None if mechanism is None else mechanism.sampling_rate,
        "steps": None if mechanism is None else mechanism.steps,
    }
    if view is not None:
        caps = (view.policy.epsilon_micro, view.standing.dataset_epsilon_cap_micro)
        document |= {
            "epsilon_cap": min(caps) / 1e6,
            "policy": view.policy.reference,
            "sentences": list(explain(view.policy)),
        }
    return document


def _privacy(results: Results) -> dict[str, Any]:
    terms = results.plan.terms.privacy
    exact = any(standing.evaluation.value == "exact" for standing in results.at_start.values())
    revoked = any("revoked" in refusal.clauses for o in results.governor.outcomes for refusal in o.refused)
    uses: History = tuple((mechanism, 1) for mechanism in results.governor.mechanisms.values())
    return {
        "unit": results.plan.unit.value,
        "relation": terms.relation.value,
        "noise_source": "seeded" if results.plan.rehearsal else "csprng",
        "accountant": accountant_of(uses),
        "trusted": list(TRUSTED),
        "not_covered": [
            SEVERAL_RECORDS[results.plan.unit],
            *NOT_COVERED,
            *([EXACT_NOT_COVERED] if exact else []),
            *([NO_UNLEARNING] if revoked else []),
        ],
        "holders": {
            holder_id: {
                "epsilon": reply.dataset_epsilon_micro / 1e6,
                "epsilon_replace_one": reply.dataset_epsilon_replace_one_micro / 1e6,
                "delta": reply.dataset_delta_pico / 1e12,
            }
            for holder_id, reply in sorted(results.evidence.items())
        },
    }


def _scores(line: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if line is None:
        return None
    return {key: line[key] for key in ("accuracy", "auc", "per_holder")}
