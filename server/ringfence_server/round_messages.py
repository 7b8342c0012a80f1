"""A model, an update and a request as Flower's messages carry them."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from safetensors.numpy import save

from ringfence_policy import canonical
from ringfence_policy.protocol import ARRAYS_RECORD, BODY_RECORD, METRICS_RECORD, WEIGHT_KEY

Arrays = Mapping[str, npt.NDArray[np.float32]]


def model_digest(arrays: Arrays) -> str:
    """Name a model by its bytes in the safetensors format, which is also the released file's."""
    return canonical.digest_bytes(save(dict(arrays)))


def arrays_of(record: ArrayRecord) -> dict[str, npt.NDArray[np.float32]]:
    """An ArrayRecord as arrays by name.

    Raises:
        ValueError: An array's bytes are not one array.
    """
    arrays = {name: array.numpy() for name, array in record.items()}
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError("not arrays")  # numpy reads an archive of arrays as well
    return arrays


def clean_reply(reply: Message, weight: int, weighted_by_key: str) -> Message:
    """An accepted update as the inner strategy sees it: arrays, and the declared weight under its key. Nothing else."""
    content = RecordDict(
        {
            ARRAYS_RECORD: reply.content.array_records[ARRAYS_RECORD],
            METRICS_RECORD: MetricRecord({WEIGHT_KEY: weight, weighted_by_key: weight}),
        }
    )
    reply.content = content
    return reply


def governed_message(message: Message, request: ConfigRecord, arrays: ArrayRecord) -> Message:
    """A message of its own for one holder, in place of the one that a strategy made.

    Flower's strategies put ONE record into all messages; what is written for one holder must reach no other.
    """
    content = RecordDict({ARRAYS_RECORD: arrays, BODY_RECORD: request})
    for name, record in message.content.config_records.items():
        content[name] = ConfigRecord(dict(record))
    metadata = message.metadata
    return Message(content, metadata.dst_node_id, metadata.message_type, ttl=metadata.ttl, group_id=metadata.group_id)
