import copy
import json

import pytest

HOSPITALS = {
    "cleveland": ("Cleveland Clinic", "us", 1.0, 0.0, 0.78),
    "budapest": ("Budapest", "eu", 1.0, 0.25, 0.80),
    "zurich-basel": ("Zurich and Basel", "ch", 0.5, 0.0, 0.74),
    "long-beach": ("Long Beach VA", "us", 0.8, 0.0, 0.71),
}
EPSILON = {
    "clause": "epsilon",
    "meaning": "All uses of this data together may spend at most epsilon 0.8 of privacy.",
    "limit": "epsilon 0.8 in all",
}
REVOKED = {"clause": "revoked", "meaning": "The policy must not have been revoked.", "limit": "not revoked"}
MIN_HOLDERS = {
    "clause": "min_holders",
    "meaning": "At least 3 data holders must take part in a round together, this one included.",
    "limit": "at least 3 data holders",
}


def _refusal(holder, reason, point):
    return {"holder": holder, "clauses": [reason["clause"]], "point": point, "reasons": [reason]}


def _round(number):
    refused = []
    if number >= 9:
        refused.append(_refusal("long-beach", EPSILON, "node-before-training"))
    if number >= 11:
        refused.append(_refusal("budapest", REVOKED, "coordinator-before-round"))
        refused.append(_refusal("zurich-basel", MIN_HOLDERS, "coordinator-before-round"))
    cohort = [holder for holder in HOSPITALS if holder not in {refusal["holder"] for refusal in refused}]
    growth = 1 - 0.68 ** min(number, 10)
    spent = {
        holder: start + (cap - start) * ((min(number, 8) / 8) if holder == "long-beach" else number / 12) ** 0.55
        for holder, (_, _, cap, start, _) in HOSPITALS.items()
        if holder in cohort
    }
    return {
        "round": number,
        "attempt": 1,
        "cohort": cohort,
        "refused": refused,
        "rejected_updates": [],
        "metrics": {
            "accuracy": 0.55 + 0.245 * growth + 0.004 * (number % 3),
            "auc": 0.62 + 0.25 * growth,
            "per_holder": {
                holder: {"accuracy": final - 0.2 + 0.2 * growth, "auc": None if holder == "zurich-basel" else final}
                for holder, (*_, final) in HOSPITALS.items()
            },
        },
        "epsilon": spent,
        "seconds": 0.42,
    }


def _scores(accuracy, auc, shift):
    per_holder = {
        holder: {"accuracy": final + shift, "auc": None if holder == "zurich-basel" else final + shift + 0.06}
        for holder, (*_, final) in HOSPITALS.items()
    }
    return {"accuracy": accuracy, "auc": auc, "per_holder": per_holder}


def _example():
    """A run of the heart scenario as the demo leaves it, made by hand: every kind of refusal is in it."""
    rounds = [_round(number) for number in range(1, 13)]
    rounds[4]["rejected_updates"] = [
        {"holder": "budapest", "code": "norm", "reason": "the update's norm is far above what its clipping norm allows"}
    ]
    failed_attempt = copy.deepcopy(rounds[6])
    failed_attempt.update(metrics=None, epsilon={}, committed=False, reason="the worker was restarted")
    rounds[6]["attempt"] = 2
    rounds.insert(6, failed_attempt)
    last_spent = {
        "long-beach": rounds[8]["epsilon"]["long-beach"],
        "zurich-basel": rounds[10]["epsilon"]["zurich-basel"],
    }
    last_spent |= {"budapest": rounds[10]["epsilon"]["budapest"], "cleveland": rounds[12]["epsilon"]["cleveland"]}
    took_part = {"cleveland": 12, "budapest": 10, "zurich-basel": 10, "long-beach": 8}
    return {
        "run_id": "run-20261121-7f3a",
        "scenario": "heart",
        "title": "Predicting heart disease across four hospitals",
        "plan_digest": "sha256:" + "5d" * 32,
        "started_at": "2026-11-21T09:14:03Z",
        "finished_at": "2026-11-21T09:14:41Z",
        "status": "completed",
        "reason": "",
        "rehearsal": False,
        "private": True,
        "plan": {
            "purpose": {"id": "heart-disease-research", "label": "heart disease research"},
            "task": "binary-classification",
            "coordinator": "heart-consortium",
            "strategy": "fedavg",
            "model": "logistic-regression",
            "rounds": 12,
            "steps": 1,
            "clipping_norm": 0.4,
            "sampling_rate": 1.0,
            "learning_rate": 6.0,
            "average_last": "0.5",
        },
        "holders": {
            holder: {
                "name": name,
                "region": region,
                "weight": 300,
                "epsilon": last_spent[holder],
                "delta": 1e-4,
                "epsilon_cap": cap,
                "epsilon_at_start": start,
                "rounds": took_part[holder],
                "noise_multiplier": 12.434562,
                "clipping_norm": 0.4,
                "sampling_rate": 1.0,
                "steps": 1,
                "policy": f"{holder}-heart@3",
                "sentences": [
                    "heart-consortium may train on this data; nobody else may.",
                    "It may be used for heart disease research and for nothing else.",
                    f"No more than epsilon {cap} at delta 0.0001 may ever be spent, counted per record.",
                    "At least 3 data holders must take part in a round.",
                ],
                "evaluation": "exact",
            }
            for holder, (name, region, cap, start, _) in HOSPITALS.items()
        },
        "rounds": rounds,
        "metrics": {
            "federated_private": _scores(0.793, 0.866, 0.0),
            "federated": _scores(0.807, 0.884, 0.015),
            "local": _scores(0.741, 0.792, -0.06),
            "pooled": _scores(0.812, 0.889, 0.02),
        },
        "curves": {
            "federated": [
                {"round": number, "accuracy": 0.6 + 0.207 * (1 - 0.6**number), "auc": 0.66 + 0.224 * (1 - 0.6**number)}
                for number in range(1, 13)
            ]
        },
        "references_note": "The three comparison lines use published data without protection; its policies allow that.",
        "privacy": {
            "unit": "record",
            "relation": "add-or-remove",
            "noise_source": "csprng",
            "accountant": "closed form of the Gaussian mechanism (Balle and Wang 2018)",
            "trusted": ["each data holder with its own records", "nobody with another holder's records"],
            "not_covered": [
                "exact evaluation on test rows, which these policies allow",
                "what one person with several records contributes",
            ],
            "holders": {},
        },
        "preview": [
            {
                "title": "The same training for insurance pricing",
                "purpose": "insurance pricing",
                "holders": [
                    {"holder": "cleveland", "permitted": True, "failed": [], "change": ""},
                    *(
                        {
                            "holder": holder,
                            "permitted": False,
                            "failed": [
                                {
                                    "clause": "purposes",
                                    "meaning": "The data may be used for health research.",
                                    "limit": "health research",
                                }
                            ],
                            "change": "state the purpose heart disease research",
                        }
                        for holder in ("budapest", "zurich-basel", "long-beach")
                    ),
                ],
            }
        ],
        "evidence": {
            "verified": True,
            "checks": [
                {"name": name, "passed": True, "detail": detail}
                for name, detail in (
                    ("canonical bytes", "the bundle is byte for byte what its contents give"),
                    ("signatures", "4 key lists, 4 policies, 1 plan and 5 checkpoints hold"),
                    ("logs", "5 logs re-hash to their signed checkpoints"),
                    ("decisions", "39 decisions re-decided, all agree"),
                    ("budgets", "epsilon of 4 holders recomputed, none understated"),
                    ("model", "model.safetensors is what the last round committed"),
                )
            ],
            "bundle": "evidence.zip",
            "digest": "sha256:" + "ab" * 32,
        },
        "timings": {
            "setup": 3.1,
            "training": 9.4,
            "evaluation": 1.2,
            "references": 4.0,
            "evidence": 1.6,
            "total": 19.3,
        },
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "flwr": "1.41.0",
            "ringfence": "0.1.0",
            "platform": "Linux",
        },
    }


@pytest.fixture(scope="session")
def example_summary():
    """Makes a fresh summary at each call: a test may change what it got, and no other test sees it."""
    return lambda: json.loads(json.dumps(_example()))


@pytest.fixture(scope="session")
def hospital_names():
    return [name for name, *_ in HOSPITALS.values()]
