"""What agent and trainer say to each other over two pipes: a line of JSON and a model beside it. Nothing is unpickled.

The agent believes nothing that comes back until it has the shape it must have: the trainer may have run a plan's own
code. Refusals cross as a code alone, because words could carry a record.
"""

import json
import os
import re
import selectors
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ringfence_client.workroom import (
    AppliedPrivacy,
    Arrays,
    DataFacts,
    Measured,
    ModelFacts,
    Shapes,
    TrainedUpdate,
    UseOrder,
)
from ringfence_policy.canonical import MAX_SAFE_INTEGER
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.plan import TrainingPlan
from ringfence_policy.score_histogram import EXACT_BINS, PRIVATE_BINS
from ringfence_policy.vocabulary import Action

_HEAD: Final = struct.Struct(">IQ")
LARGEST_WORDS: Final = 64 * 1024 * 1024
# What a trainer has to say is counts, and names of parameters. Read as JSON it may take thirty times as much memory.
LARGEST_ANSWER: Final = 4 * 1024 * 1024
LARGEST_MODEL: Final = 8 * 1024**3
_PIECE: Final = 1 << 20


class WireFault(Exception):
    """The other side is gone, late, or says what it must not."""


@dataclass(frozen=True)
class Frame:
    """One thing that is said: words as JSON, and arrays where there are any."""

    words: Mapping[str, Any]
    arrays: bytes = field(default=b"", repr=False)


def send(descriptor: int, frame: Frame, *, until: float | None = None) -> None:
    """Write a frame whole.

    Args:
        descriptor: A pipe's writing end; one that does not block where there is a time to give up.
        frame: What is said.
        until: When to give up, by `time.monotonic`; never where it is None.

    Raises:
        WireFault: The other side is gone, or did not listen in time.
    """
    words = json.dumps(frame.words, allow_nan=False).encode()
    rest = memoryview(_HEAD.pack(len(words), len(frame.arrays)) + words + frame.arrays)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest[:_PIECE]) :]
        except BlockingIOError:
            _wait(descriptor, selectors.EVENT_WRITE, until)
        except OSError as error:
            raise WireFault(f"the other side is gone ({type(error).__name__})") from None


def receive(
    descriptor: int, *, until: float | None = None, largest: int = LARGEST_MODEL, most_words: int = LARGEST_WORDS
) -> Frame | None:
    """Read a frame whole.

    Args:
        descriptor: A pipe's reading end.
        until: When to give up, by `time.monotonic`; never where it is None.
        largest: Bytes of arrays that are taken at most.
        most_words: Bytes of words that are taken at most.

    Returns:
        The frame, or None where the other side closed the pipe instead of saying anything.

    Raises:
        WireFault: It broke off, was late, or said something that is no frame.
    """
    head = _read(descriptor, _HEAD.size, until, may_end=True)
    if not head:
        return None
    words_size, arrays_size = _HEAD.unpack(head)
    if words_size > most_words or arrays_size > largest:
        raise WireFault("more was said than can be meant")
    try:
        words = json.loads(_read(descriptor, words_size, until))
    except (ValueError, RecursionError):
        raise WireFault("what was said is no JSON") from None
    if not isinstance(words, dict):
        raise WireFault("what was said is no object")
    return Frame(words, _read(descriptor, arrays_size, until))


def _read(descriptor: int, size: int, until: float | None, *, may_end: bool = False) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        _wait(descriptor, selectors.EVENT_READ, until)
        try:
            part = os.read(descriptor, min(_PIECE, size - len(parts)))
        except OSError as error:
            raise WireFault(f"the other side is gone ({type(error).__name__})") from None
        if not part:
            if may_end and not parts:
                return b""
            raise WireFault("the other side ended in the middle of a word")
        parts += part
    return bytes(parts)


def _wait(descriptor: int, event: int, until: float | None) -> None:
    if until is None:
        return
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, event)
        if not selector.select(max(0.0, until - time.monotonic())):
            raise WireFault("the other side took too long")


# --- what stands in frames -------------------------------------------------------------------------------------------


def order_frame(order: UseOrder) -> Frame:
    """An order as it crosses to the trainer."""
    return Frame(
        {
            "ask": "use",
            "holder_id": order.holder_id,
            "plan": order.plan.to_document(),
            "action": order.action.value,
            "round_number": order.round_number,
            "mechanism": None if order.mechanism is None else order.mechanism.to_document(),
            "trainer": order.trainer,
            "weight": order.weight,
            "rehearsal_seed": order.rehearsal_seed,
        },
        save(dict(order.arrays)),
    )


def order_in(frame: Frame) -> UseOrder:
    """The order in a frame from the agent, which is trusted here."""
    words = frame.words
    mechanism = words["mechanism"]
    return UseOrder(
        holder_id=words["holder_id"],
        plan=TrainingPlan.from_document(words["plan"]),
        action=Action(words["action"]),
        round_number=words["round_number"],
        arrays=load(frame.arrays),
        mechanism=None if mechanism is None else DpMechanism.from_document(mechanism),
        trainer=words["trainer"],
        weight=words["weight"],
        rehearsal_seed=words["rehearsal_seed"],
    )


def result_frame(result: TrainedUpdate | Measured) -> Frame:
    """A result as it crosses to the agent."""
    applied = None if result.applied is None else asdict(result.applied)
    if isinstance(result, Measured):
        return Frame({"said": "measured", "histogram": list(map(list, result.histogram)), "applied": applied})
    return Frame({"said": "trained", "applied": applied, "trainer": result.trainer}, save(result.arrays))


def result_in(frame: Frame, order: UseOrder) -> TrainedUpdate | Measured:
    """The result in a frame from the trainer, which is not trusted: it must be exactly what the order asks for.

    Raises:
        WireFault: It is not.
    """
    words = frame.words
    if order.action is Action.TRAIN:
        if set(words) != {"said", "applied", "trainer"} or words["said"] != "trained":
            raise WireFault("training gave something else than an update")
        if words["trainer"] != order.trainer or order.trainer is None:
            raise WireFault("another trainer trained than the one that was chosen")
        return TrainedUpdate(
            holder_id=order.holder_id,
            arrays=_arrays_in(frame.arrays, {name: array.shape for name, array in order.arrays.items()}),
            applied=_applied_in(words["applied"]),
            trainer=order.trainer,
        )
    if set(words) != {"said", "applied", "histogram"} or words["said"] != "measured" or frame.arrays:
        raise WireFault("an evaluation gave something else than counts")
    bins = EXACT_BINS if order.mechanism is None else PRIVATE_BINS
    rows = words["histogram"]
    if not (isinstance(rows, list) and len(rows) == 2 and all(_is_row(row, bins) for row in rows)):  # noqa: PLR2004 -- two labels
        raise WireFault("an evaluation gave counts of another shape")
    applied = words["applied"]
    return Measured(
        histogram=(tuple(rows[0]), tuple(rows[1])), applied=None if applied is None else _applied_in(applied)
    )


def facts_in(frame: Frame) -> DataFacts:
    """The facts in a frame from the trainer's process.

    Raises:
        WireFault: It holds something else.
    """
    words = frame.words
    records, fingerprint = words.get("records"), words.get("fingerprint")
    if words.get("said") != "facts" or not _is_count(records) or not _is_digest(fingerprint):
        raise WireFault("the records were not counted")
    return DataFacts(records=records, fingerprint=fingerprint)


def model_facts_in(frame: Frame) -> ModelFacts:
    """What is known of a model in a frame from the trainer's process.

    Raises:
        WireFault: It holds something else.
    """
    words = frame.words
    shapes, trainer = words.get("shapes"), words.get("trainer")
    if words.get("said") != "examined" or not isinstance(shapes, dict):
        raise WireFault("the model was not examined")
    if trainer not in ("opacus", "book-keeping", "cohort"):
        raise WireFault("the model is trained by nobody that is known")
    if not all(isinstance(shape, list) and all(_is_count(size) for size in shape) for shape in shapes.values()):
        raise WireFault("the model has parameters of no shape")
    return ModelFacts(shapes={name: tuple(shape) for name, shape in shapes.items()}, trainer=trainer)


def _arrays_in(data: bytes, shapes: Shapes) -> dict[str, npt.NDArray[np.float32]]:
    try:
        arrays: Arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise WireFault("an update is no set of arrays") from None
    if {name: array.shape for name, array in arrays.items()} != dict(shapes):
        raise WireFault("an update has other parameters than its model")
    if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays.values()):
        raise WireFault("an update has numbers that cannot be sent")
    return {name: arrays[name] for name in shapes}


def _applied_in(words: object) -> AppliedPrivacy:
    names = ("clipping_norm", "noise_multiplier", "sampling_rate")
    if not isinstance(words, dict) or set(words) != {*names, "steps", "noise_kind"}:
        raise WireFault("what was applied is not said")
    if not all(isinstance(words[name], float) for name in names) or not _is_count(words["steps"]):
        raise WireFault("what was applied is no number")
    if words["noise_kind"] not in ("csprng", "seeded"):
        raise WireFault("the noise is from nowhere that is known")
    return AppliedPrivacy(**words)


def _is_row(row: object, bins: int) -> bool:
    return (
        isinstance(row, list)
        and len(row) == bins
        and all(type(count) is int and abs(count) <= MAX_SAFE_INTEGER for count in row)
    )


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_SAFE_INTEGER


def _is_digest(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch("sha256:[0-9a-f]{64}", value) is not None
