"""Which trainer trains which model. What needs torch is loaded when it is chosen: built-in models do without."""

import json
from collections.abc import Mapping
from functools import lru_cache
from logging import getLogger
from typing import Any, Final, Literal

from ringfence_client.cohort_trainer import CohortTrainer
from ringfence_client.models import BUILT_IN
from ringfence_client.trainer import Trainer
from ringfence_policy.errors import DocumentInvalid
from ringfence_policy.plan import TrainerName

_FOR_BUILT_IN: Final[TrainerName] = "cohort"

_log = getLogger(__name__)


def choose_trainer(
    model: Mapping[str, Any], feature_count: int, *, wanted: Literal["auto"] | TrainerName
) -> TrainerName:
    """Choose what trains a model, and make sure that it can. Opens no data.

    Args:
        model: The plan's [model] table.
        feature_count: How many features a row has.
        wanted: The plan's choice. With `auto`, built-in models go to the trainer made for them, and own modules to
            book-keeping where it knows their layers, and to Opacus elsewhere.

    Returns:
        The name of the trainer.

    Raises:
        DocumentInvalid: What was asked for cannot train the model, or with `auto` nothing can.
    """
    return _chosen(json.dumps(model, sort_keys=True), feature_count, wanted)


# Every holder of a process asks, in every round. A changed source is another digest in the spec, or refused when built.
@lru_cache(maxsize=64)
def _chosen(spec: str, feature_count: int, wanted: Literal["auto"] | TrainerName) -> TrainerName:
    model = json.loads(spec)
    if wanted != "auto":
        _check(wanted, model, feature_count)
        return wanted
    if model.get("kind") in BUILT_IN:
        return _FOR_BUILT_IN
    try:
        _check("book-keeping", model, feature_count)
    except DocumentInvalid as reason:
        _check("opacus", model, feature_count)
        _log.info("Opacus trains this model: %s", reason.got)
        return "opacus"
    return "book-keeping"


def trainer_named(name: TrainerName) -> Trainer:
    """Make the trainer of this name."""
    match name:
        case "opacus":
            from ringfence_client.opacus_trainer import OpacusTrainer  # noqa: PLC0415 -- torch, and two seconds more

            return OpacusTrainer()
        case "book-keeping":
            from ringfence_client.bookkeeping_trainer import BookKeepingTrainer  # noqa: PLC0415 -- torch

            return BookKeepingTrainer()
        case "cohort":
            return CohortTrainer()


def _check(name: TrainerName, model: Mapping[str, Any], feature_count: int) -> None:
    match name:
        case "opacus":
            from ringfence_client import modules, opacus_trainer  # noqa: PLC0415 -- as above

            opacus_trainer.check_module(modules.build_module(model, feature_count))
        case "book-keeping":
            from ringfence_client import bookkeeping_trainer, modules  # noqa: PLC0415 -- as above

            bookkeeping_trainer.check_module(modules.build_module(model, feature_count), feature_count)
        case "cohort" if model.get("kind") not in BUILT_IN:
            raise DocumentInvalid(
                "the cohort trainer cannot train this model",
                expected=f"kind = {' or '.join(map(repr, BUILT_IN))}",
                got=repr(model.get("kind")),
                where="[training] trainer",
                next_step="set trainer = 'auto', 'book-keeping' or 'opacus'",
            )
