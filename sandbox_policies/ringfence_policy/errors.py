"""Every fault Ringfence raises, drawn as one tree.

    RingfenceError
    ├── UsageError              exit 2   something a person wrote is wrong, and the message says how to mend it
    │   ├── DocumentInvalid              a policy, plan, schema or holder file
    │   ├── DataInvalid                  a holder's data does not fit the declared schema
    │   ├── ScenarioInvalid              a scenario directory is incomplete
    │   ├── ScenarioBusy                 another run is going on in the directory
    │   ├── NotKnown                     there is no such thing, or whoever asks may not know of it
    │   ├── Conflict                     the state of things does not allow it now
    │   ├── Stale                        it was changed since it was read, so nothing is written
    │   └── AtTheHolder                  it is done on the data holder's own machine, and nowhere else
    ├── Refused                 exit 3   an answer, not a fault
    │   ├── TrustRefused                 a signature, key, type, sequence number or digest does not hold
    │   ├── BudgetExhausted              a privacy or round budget does not allow this use
    │   ├── EvidenceRefused              a bundle does not prove what it claims
    │   ├── RunRefused                   no data holder permits the plan
    │   ├── NotSignedIn                  nobody is signed in (ringfence_server.control.signon)
    │   ├── CrossSite                    a browser's request from another site (ringfence_server.control.signon)
    │   ├── SignInRefused                a sign-in does not hold (ringfence_server.control.oidc)
    │   └── NotAllowed                   the role of whoever asks may not do this
    └── Fault                   exit 1   the machine or the code
        ├── LedgerFault                  the privacy ledger cannot record, so nothing may be used
        ├── Unaccountable                a mechanism has no known privacy analysis; never counted as zero
        ├── NoiseFault                   a noise generator fails its check (ringfence_client.workroom)
        ├── SandboxFault                 the trainer's own process broke off (ringfence_client.walled_workroom)
        ├── TrainingFault                training gave nothing that may be sent (ringfence_client.trainer)
        ├── ProviderFault                the identity provider does not answer (ringfence_server.control.oidc)
        ├── StoreFault                   the control plane's database (ringfence_server.control.store.engine)
        ├── DeploymentFault              the coordinator's SuperLink or front does not work
        └── RunFailed                    a run stopped; the message says from where it can be resumed

A message says what was expected, what came, where, and the next step. It never holds a holder's data or an update's
values. The stable `code`, the HTTP status and the exit code stand on the class, so that the three faces agree.
"""

from typing import ClassVar


class RingfenceError(Exception):
    """A fault with its four parts: what was expected, what came, where, and what to do next."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        summary: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        where: str | None = None,
        next_step: str | None = None,
    ) -> None:
        self.summary = summary
        self.expected = expected
        self.got = got
        self.where = where
        self.next_step = next_step
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.summary}" if self.where else self.summary]
        if self.expected is not None:
            parts.append(f"  expected: {self.expected}")
        if self.got is not None:
            parts.append(f"  got:      {self.got}")
        if self.next_step is not None:
            parts.append(f"  next:     {self.next_step}")
        return "\n".join(parts)

    def to_document(self) -> dict[str, str | None]:
        """The error as the JSON that `--json` and the API show."""
        return {
            "code": self.code,
            "summary": self.summary,
            "expected": self.expected,
            "got": self.got,
            "where": self.where,
            "next_step": self.next_step,
        }


class UsageError(RingfenceError):
    """Something a person wrote is wrong."""

    code = "usage"
    http_status = 422
    exit_code = 2


class DocumentInvalid(UsageError):
    """A policy, plan, schema or holder file does not say what it must."""

    code = "document-invalid"


class DataInvalid(UsageError):
    """A holder's data does not fit the declared schema. Carries counts and column names, never values."""

    code = "data-invalid"


class ScenarioInvalid(UsageError):
    """A scenario directory is incomplete or contradicts itself."""

    code = "scenario-invalid"


class ScenarioBusy(UsageError):
    """Another run is going on in the scenario directory."""

    code = "scenario-busy"
    http_status = 409


class NotKnown(UsageError):
    """There is no such thing, or whoever asks may not know of it. The two are not told apart."""

    code = "not-known"
    http_status = 404


class Conflict(UsageError):
    """The state of things does not allow it now."""

    code = "conflict"
    http_status = 409


class Stale(UsageError):
    """What is to be changed was changed since it was read, so nothing is written."""

    code = "stale"
    http_status = 412


class AtTheHolder(UsageError):
    """It is done on the data holder's own machine, by its own commands, and nowhere else."""

    code = "at-the-holder"
    http_status = 409


class Refused(RingfenceError):
    """An answer rather than a fault: what was asked is not allowed."""

    code = "refused"
    http_status = 403
    exit_code = 3


class TrustRefused(Refused):
    """A signature, key, document type, sequence number or digest does not hold."""

    code = "trust-refused"


class BudgetExhausted(Refused):
    """A privacy or round budget does not allow this use."""

    code = "budget-exhausted"


class EvidenceRefused(Refused):
    """An evidence bundle does not prove what it claims."""

    code = "evidence-refused"


class RunRefused(Refused):
    """No data holder permits the plan, so no round can run."""

    code = "run-refused"


class NotAllowed(Refused):
    """The role of whoever asks may not do this."""

    code = "not-allowed"
    http_status = 403


class Fault(RingfenceError):
    """The machine or the code failed."""

    code = "fault"


class LedgerFault(Fault):
    """The privacy ledger cannot record a use, so the use may not happen."""

    code = "ledger-fault"


class Unaccountable(Fault):
    """A mechanism has no known privacy analysis. It is never counted as zero."""

    code = "unaccountable"


class DeploymentFault(Fault):
    """The coordinator's SuperLink, or its front for nodes, does not answer or cannot be started."""

    code = "deployment-fault"
    http_status = 503


class RunFailed(Fault):
    """A run stopped. What was committed is kept; `ringfence run --resume` goes on from there."""

    code = "run-failed"
