"""Putting a run's evidence together: every log, every signed paper and what the run claims, in one file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from ringfence_policy import bundle_layout as layout
from ringfence_policy import canonical
from ringfence_policy.bundle import write_bundle
from ringfence_policy.documents import manifest_document
from ringfence_policy.errors import RingfenceError
from ringfence_policy.evidence_records import parse_line
from ringfence_policy.identity import DocumentType, PublicKey, parse, sign
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.policy import UsagePolicy
from ringfence_policy.protocol import EvidenceReply, HolderCard
from ringfence_policy.verify import Roots
from ringfence_server.coordinator import Coordinator
from ringfence_server.run_file import RunFile


def gather_bundle(
    *,
    run: RunFile,
    plan: TrainingPlan,
    coordinator: Coordinator,
    replies: Mapping[str, EvidenceReply],
    model: Mapping[str, npt.NDArray[np.float32]] | None,
) -> Path:
    """Write evidence.zip of a run into its directory.

    Args:
        run: The run.
        plan: Its plan.
        coordinator: The coordinator, whose log and papers go in.
        replies: Each holder's evidence. A holder that gave none is missing, and verification says so.
        model: The released model, or None where it was not released.

    Returns:
        The file's path.
    """
    with coordinator.database.transaction():
        lines = coordinator.log.lines()
        checkpoint = coordinator.log.checkpoint(key=coordinator.key, now_ms=coordinator.clock())
    files = {
        layout.PLAN: run.plan_token.encode(),
        layout.CLAIMS: canonical.encode(_claims(run, plan, replies)),
        layout.coordinator_file(layout.KEYS): coordinator.keys_token.encode(),
        layout.coordinator_file(layout.LOG): b"".join(line + b"\n" for line in lines),
        layout.coordinator_file(layout.CHECKPOINT): checkpoint.encode(),
    }
    for holder_id, reply in replies.items():
        files |= _holder_files(holder_id, reply)
    if model is not None:
        files[layout.MODEL] = save(dict(model))
    manifest = manifest_document(
        run_id=run.run_id,
        coordinator=coordinator.coordinator_id,
        made_at_ms=coordinator.clock(),
        rehearsal=plan.rehearsal,
        files=files,
    )
    files[layout.MANIFEST] = sign(manifest, type=DocumentType.MANIFEST, key=coordinator.key).encode()
    path = Path(run.directory) / "evidence.zip"
    write_bundle(path, files)
    return path


def is_readable(reply: EvidenceReply) -> bool:
    """Whether what a holder handed over is a log at all. If not, it goes without evidence, and verification says so."""
    try:
        for line in reply.records:
            data = line.encode()
            parse_line(canonical.decode(data), data)
    except (RingfenceError, AttributeError, UnicodeEncodeError):
        return False
    return True


def roots_of_run(run: RunFile) -> Roots:
    """The root keys as this coordinator learnt them. A verifier gets each from its owner instead."""
    root = PublicKey.from_jwk(json.loads((run.root / "coordinator" / "root.jwk").read_text()))
    return Roots(
        coordinator_id=root.kid.rsplit("/", 1)[0],
        coordinator=root,
        holders={
            holder_id: PublicKey.from_jwk(HolderCard(**card).root) for holder_id, card in sorted(run.cards.items())
        },
    )


def _claims(run: RunFile, plan: TrainingPlan, replies: Mapping[str, EvidenceReply]) -> dict[str, Any]:
    holders: dict[str, Any] = {}
    for holder_id, reply in replies.items():
        records = [canonical.decode(line.encode()) for line in reply.records]
        mine = [record for record in records if record["run"] == run.run_id]
        sent = [record for record in mine if record["kind"] == "sent"]
        decided_under = [record["decision"].get("policy") for record in mine if record["kind"] == "decision"]
        holders[holder_id] = {
            "epsilon_micro": reply.dataset_epsilon_micro,
            "delta_pico": reply.dataset_delta_pico,
            "epsilon_cap_micro": _cap(reply, decided_under),
            "rounds": len(sent),
            "mechanism": sent[-1]["mechanism"] if sent else None,
        }
    return {"run": run.run_id, "rehearsal": plan.rehearsal, "holders": holders}


def _cap(reply: EvidenceReply, decided_under: Sequence[object]) -> int:
    """The cap of the policy that a holder last decided under in a run, which may be another than the run began with.

    Where it decided under none, that of the newest one it handed over; 0 where there is none.
    """
    policies = {policy.reference: policy for policy, _ in _policies(reply)}
    used = [policies[name] for name in decided_under if isinstance(name, str) and name in policies]
    newest = sorted(policies.values(), key=lambda policy: policy.version)
    return next((policy.epsilon_micro for policy in reversed(used or newest)), 0)


def _policies(reply: EvidenceReply) -> Iterator[tuple[UsagePolicy, str]]:
    for token in reply.policies:
        try:
            yield UsagePolicy.from_document(parse(token).claimed()), token
        except RingfenceError:
            continue  # the holder gave something that is no policy; what it decided under it will not verify


def _holder_files(holder_id: str, reply: EvidenceReply) -> dict[str, bytes]:
    files = {
        layout.holder_file(holder_id, layout.KEYS): reply.keys.encode(),
        layout.holder_file(holder_id, layout.LOG): b"".join(line.encode() + b"\n" for line in reply.records),
        layout.holder_file(holder_id, layout.CHECKPOINT): reply.checkpoint.encode(),
    }
    if reply.status:
        files[layout.holder_file(holder_id, layout.STATUS)] = reply.status.encode()
    if reply.participation:
        files[layout.holder_file(holder_id, layout.PARTICIPATION)] = reply.participation.encode()
    for policy, token in _policies(reply):
        files[layout.policy_file(holder_id, policy.policy_id, policy.version)] = token.encode()
    return files
