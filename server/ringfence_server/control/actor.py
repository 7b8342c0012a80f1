"""Who asks: one of five roles, under a name, by one of three ways in."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Role(StrEnum):
    """What somebody is here to do."""

    HOLDER = "holder"
    COORDINATOR = "coordinator"
    RESEARCHER = "researcher"
    REGULATOR = "regulator"
    ADMINISTRATOR = "administrator"


@dataclass(frozen=True)
class Actor:
    """Somebody who asks for a use case, as sign-on found them to be.

    Attributes:
        role: What they may do.
        name: As they are shown.
        holder: For a data officer, the one data holder they speak for; None for every other role.
        via: How they came: a browser's session, a token, or a command on this machine.
        account: Who they are, stable over sessions: what idempotency keys and records of reading go by.
    """

    role: Role
    name: str
    holder: str | None
    via: Literal["session", "token", "cli"]
    account: str
