"""A model, an update and a request as Flower's messages carry them."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from safetensors.numpy import load, save

from ringfence_policy import canonical
from ringfence_policy.protocol import ARRAYS_RECORD, BODY_RECORD, FILE_KEY, FILE_TYPE, METRICS_RECORD, WEIGHT_KEY

Arrays = Mapping[str, npt.NDArray[np.float32]]


def model_digest(arrays: Arrays) -> str:
    """Name a model by its bytes in the safetensors format, which is also the released file's."""
    return canonical.digest_bytes(save(dict(arrays)))


class _ReadAsNumpy(Array):
    """One of Flower's arrays for a strategy, which reads numpy: in Flower's file format only where somebody asks."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        vars(self).update(dtype=str(array.dtype), shape=array.shape, stype="numpy.ndarray", array=array)

    def numpy(self) -> npt.NDArray[Any]:
        """A copy, as Flower gives: a strategy may go on computing in it."""
        array: npt.NDArray[Any] = vars(self)["array"].copy()
        return array

    @cached_property
    def data(self) -> bytes:  # type: ignore[override] # a field there
        """The array in Flower's file format."""
        return Array(vars(self)["array"]).data


def arrays_of(record: ArrayRecord) -> dict[str, npt.NDArray[np.float32]]:
    """A strategy's ArrayRecord as arrays by name."""
    return {name: array.numpy() for name, array in record.items()}


def to_record(arrays: Arrays) -> ArrayRecord:
    """Arrays by name as a strategy has them."""
    record = ArrayRecord()  # which copies what it is made of, but not what it is given later
    for name, array in arrays.items():
        record[name] = _ReadAsNumpy(array)
    return record


def packed(arrays: Arrays) -> ArrayRecord:
    """A model as it travels: one array, the bytes of its safetensors file."""
    file = save(dict(arrays))
    return ArrayRecord({FILE_KEY: Array(dtype="uint8", shape=(len(file),), stype=FILE_TYPE, data=file)})


def file_in(record: ArrayRecord) -> bytes:
    """The safetensors file of a model or an update that travelled; its digest is of these bytes.

    Raises:
        ValueError: It is not exactly one file.
    """
    if set(record) != {FILE_KEY} or record[FILE_KEY].stype != FILE_TYPE:
        raise ValueError("not the bytes of one file")
    return record[FILE_KEY].data


def unpacked(record: ArrayRecord) -> dict[str, npt.NDArray[np.float32]]:
    """A model or an update that travelled, as arrays by name. Their names, shapes and types are the sender's.

    Raises:
        ValueError: It is not exactly one file.
        SafetensorError: The bytes are no safetensors file.
    """
    return load(file_in(record))


def clean_reply(reply: Message, weight: int, weighted_by_key: str, *, like: ArrayRecord) -> Message:
    """An accepted update as the inner strategy sees it: arrays, and the declared weight under its key. Nothing else.

    Strategies go by the order of arrays, and a file has an order of its own: they get that of `like`, the model.
    """
    update = unpacked(reply.content.array_records[ARRAYS_RECORD])
    content = RecordDict(
        {
            ARRAYS_RECORD: to_record({name: update[name] for name in like}),
            METRICS_RECORD: MetricRecord({WEIGHT_KEY: weight, weighted_by_key: weight}),
        }
    )
    reply.content = content
    return reply


def governed_message(message: Message, request: ConfigRecord, arrays: ArrayRecord) -> Message:
    """A message of its own for one holder, in place of the one that a strategy made.

    Flower's strategies put ONE record into all messages; what is written for one holder must reach no other. The model,
    as `packed` made it, is the same for all.
    """
    content = RecordDict({ARRAYS_RECORD: arrays, BODY_RECORD: request})
    for name, record in message.content.config_records.items():
        content[name] = ConfigRecord(dict(record))
    metadata = message.metadata
    return Message(content, metadata.dst_node_id, metadata.message_type, ttl=metadata.ttl, group_id=metadata.group_id)
