"""Who does something: a role, a name, and for a data officer the holder that they speak for."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What somebody is to a federation. docs/control.md says what each is for."""

    HOLDER = "holder"
    COORDINATOR = "coordinator"
    RESEARCHER = "researcher"
    REGULATOR = "regulator"
    ADMINISTRATOR = "administrator"


@dataclass(frozen=True)
class Actor:
    """Somebody who was believed to be who they are.

    Attributes:
        role: Their one role.
        name: What they are called in pages, logs and approvals.
        holder: For the role holder, the data holder's id; None for all others.
        via: How they came: `session`, `token` or `cli`.
        account: Stable name of the account, for what is bound to one person.
    """

    role: Role
    name: str
    holder: str | None
    via: str
    account: str
