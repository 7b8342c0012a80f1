"""Flower's messages as bytes: the only place of the holder's side that touches what Flower does not publish.

tests/conformance/test_flower_contract.py pins what is used here: an upgrade of Flower that moves it fails there.
"""

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage


class NotAMessage(ValueError):
    """The bytes are no message of Flower's."""


def to_bytes(message: Message) -> bytes:
    """A message as Flower writes it."""
    data: bytes = message_to_proto(message).SerializeToString()
    return data


def from_bytes(data: bytes) -> Message:
    """Read a message.

    Raises:
        NotAMessage: The bytes are none. Says nothing of what they hold.
    """
    try:
        proto = ProtoMessage.FromString(data)
        is_one = bool(proto.metadata.message_type) and proto.HasField("content") != proto.HasField("error")
        message = message_from_proto(proto) if is_one else None
    except Exception as error:  # noqa: BLE001 -- whatever a stranger's bytes do to a parser, they are no message
        raise NotAMessage(f"not one of Flower's messages ({type(error).__name__})") from None
    if message is None:
        raise NotAMessage("not one of Flower's messages")
    return message
