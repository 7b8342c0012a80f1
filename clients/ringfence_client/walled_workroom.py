"""The workroom of a real holder: a process behind walls opens its records, and this one never does.

A reader counts the records and ends; it runs no plan's code. A trainer stays warm for one plan, and another plan gets
another process. A model that is code of somebody's own is built and its noise tried by an examiner, which can open no
record: what it says costs nothing, and so may say nothing about one. From the trainer such code is heard only for a use
that is charged. What any of them says is believed as far as it has the shape it must have.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Final, Self, TypeVar

from ringfence_client.trainer_link import TrainerLink, TrainerSettings
from ringfence_client.trainer_wire import (
    Frame,
    WireFault,
    facts_in,
    model_facts_in,
    order_frame,
    result_in,
)
from ringfence_client.walls import Wall
from ringfence_client.workroom import FAILED_USE, DataFacts, ModelFacts, NoiseFault, Result, UseOrder
from ringfence_policy.errors import DataInvalid, DocumentInvalid, Fault, RingfenceError, TrustRefused
from ringfence_policy.mechanism import DpMechanism
from ringfence_policy.plan import TrainerName, TrainingPlan

_QUESTION_SECONDS: Final = 120.0
_ROOM_FOR_NAMES: Final = 1 << 20

T = TypeVar("T")

_log = getLogger(__name__)


class SandboxFault(Fault):
    """The trainer's process cannot be started, broke off or was ended, so nothing was done."""

    code = "sandbox-fault"


_REFUSALS: Final[Mapping[str, tuple[type[RingfenceError], str]]] = {
    DataInvalid.code: (DataInvalid, "the records do not fit the plan's schema"),
    DocumentInvalid.code: (DocumentInvalid, "the plan's model cannot be built or trained"),
    TrustRefused.code: (TrustRefused, "the model's code is not what the plan names"),
    NoiseFault.code: (NoiseFault, "the trainer does not add the noise that would be charged"),
}


@dataclass(frozen=True)
class _Version:
    """What is known about the records as their file was at one moment."""

    stamp: tuple[tuple[str, int, int, int], ...]
    facts: dict[str, DataFacts]


class WalledWorkroom:
    """One holder's records, used in a process of their own.

    Args:
        settings: What that process is given.
    """

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._link: TrainerLink | None = None
        self._needs_no_loading = False  # its process has loaded what trains, or has opened a record
        self._examiner: TrainerLink | None = None
        self._plan = ""
        self._examined_plan = ""
        self._examined: dict[str, ModelFacts] = {}
        self._sound: set[tuple[str, str, str, bool]] = set()
        self._version = _Version(stamp=(), facts={})

    @property
    def breaches(self) -> Mapping[Wall, str]:
        """What the trainer's attack on its own walls got through. Starts it where it does not run.

        Raises:
            SandboxFault: It cannot be started.
        """
        return self._trainer(self._plan).breaches

    @property
    def sandboxed(self) -> bool:
        """See `Workroom.sandboxed`: asked anew each time, of the process that would be used."""
        try:
            return not self.breaches
        except SandboxFault:
            return False

    @property
    def pid(self) -> int | None:
        """The trainer's process, where one runs."""
        link = self._link
        return link.pid if link is not None and link.is_alive else None

    def facts(self, plan: TrainingPlan) -> DataFacts:
        """See `Workroom.facts`: counted once for each schema and version of the file."""
        with self._lock:
            self._forget_an_older_version()
            digest = plan.dataset_schema.digest
            if digest not in self._version.facts:
                self._version.facts[digest] = self._count(plan)
            return self._version.facts[digest]

    def examine(self, plan: TrainingPlan) -> ModelFacts:
        """See `Workroom.examine`: asked once for each plan, before its trainer opens a record."""
        with self._lock:
            if plan.digest not in self._examined:
                said = self._question(plan, Frame({"ask": "examine", "plan": plan.to_document()}))
                self._examined[plan.digest] = _read(said, model_facts_in)
            if plan.terms.model.kind == "module":
                self._trainer(plan.digest)  # which loads what the examiner named, before a use of it is charged
            return self._examined[plan.digest]

    def check_training(self, run_id: str, plan: TrainingPlan, mechanism: DpMechanism, *, seed: int | None) -> None:
        """See `Workroom.check_training`: once for each of a run's mechanisms."""
        document = mechanism.to_document()
        key = (run_id, plan.digest, repr(sorted(document.items())), seed is None)
        with self._lock:
            if key in self._sound:
                return
            words = {"ask": "check", "run_id": run_id, "plan": plan.to_document(), "mechanism": document, "seed": seed}
            if self._question(plan, Frame(words)).words != {"said": "sound"}:
                raise SandboxFault("the trainer did not say whether its noise is sound")
            self._sound.add(key)

    @classmethod
    def carry_out(cls, orders: Sequence[tuple[Self, UseOrder]]) -> list[Result | Fault]:
        """See `Workroom.carry_out`: each holder's in its own process."""
        return [room._carry_out(order) for room, order in orders]  # noqa: SLF001 -- of the same class

    def close(self) -> None:
        """See `Workroom.close`."""
        with self._lock:
            self._end_examiner()
            if self._link is not None:
                self._link.close()
                self._link = None

    def _carry_out(self, order: UseOrder) -> Result | Fault:
        with self._lock:
            self._end_examiner()  # it has said what it was started for
            expected = self._link.breaches if self._link is not None else {}
            try:
                link = self._trainer(order.plan.digest)
                self._needs_no_loading = True  # from here on a plan's own code may answer: nothing is asked unpaid
                if not link.breaches.keys() <= expected.keys():
                    # It was started anew since the gate asked, and stands less well than what was permitted.
                    self.close()
                    return Fault(FAILED_USE)
                size = sum(array.nbytes for array in order.arrays.values()) + _ROOM_FOR_NAMES
                said = link.ask(order_frame(order), seconds=float(order.plan.terms.cohort.round_seconds), largest=size)
                return result_in(said, order)
            except (SandboxFault, WireFault) as error:
                _log.error("a use failed: %s", error)
            except Exception as error:  # noqa: BLE001 -- records were opened: whatever an answer breaks here is charged
                _log.error("a use failed with %s", type(error).__name__)
                self.close()
            return Fault(FAILED_USE)

    def _count(self, plan: TrainingPlan) -> DataFacts:
        try:
            reader = TrainerLink("reader", self._settings)
        except WireFault as error:
            raise _broken(error) from None
        try:
            said = reader.ask(Frame({"ask": "facts", "plan": plan.to_document()}), seconds=_QUESTION_SECONDS)
        except WireFault as error:
            raise _broken(error) from None
        finally:
            reader.close()
        _raise_refusal(said)
        return _read(said, facts_in)

    def _question(self, plan: TrainingPlan, frame: Frame) -> Frame:
        asked = self._examiner_of(plan) if plan.terms.model.kind == "module" else self._trainer(plan.digest)
        try:
            said = asked.ask(frame, seconds=_QUESTION_SECONDS)
        except WireFault as error:
            raise _broken(error) from None
        _raise_refusal(said)
        return said

    def _examiner_of(self, plan: TrainingPlan) -> TrainerLink:
        """The process for what is asked about a plan's own code before anything is charged."""
        allowed = self.breaches.keys()  # asked first: where the data file is another one, it ends all processes
        if self._examiner is not None and not (self._examiner.is_alive and self._examined_plan == plan.digest):
            self._end_examiner()
        if self._examiner is None:
            try:
                self._examiner = TrainerLink("examiner", self._settings)
            except WireFault as error:
                raise _broken(error) from None
            self._examined_plan = plan.digest
        if not self._examiner.breaches.keys() <= allowed:
            self._end_examiner()
            raise SandboxFault("the examiner's walls stand less well than the trainer's")
        return self._examiner

    def _end_examiner(self) -> None:
        if self._examiner is not None:
            self._examiner.close()
            self._examiner = None

    def _trainer(self, plan_digest: str) -> TrainerLink:
        """The process for a plan: one that has seen another plan's code is ended first."""
        with self._lock:
            self._forget_an_older_version()
            if self._link is not None and (not self._link.is_alive or (self._plan and self._plan != plan_digest)):
                self.close()
            if self._link is None:
                try:
                    self._link = TrainerLink("trainer", self._settings)
                except WireFault as error:
                    raise _broken(error) from None
                self._needs_no_loading = False
                for wall, how in self._link.breaches.items():
                    _log.warning("the wall '%s' does not stand: %s", wall, how)
            self._plan = plan_digest
            if not self._needs_no_loading and plan_digest in self._examined:
                self._load(self._link, self._examined[plan_digest].trainer)
            return self._link

    def _load(self, link: TrainerLink, trainer: TrainerName) -> None:
        """Have a process that has opened no record yet load what trains them, which takes seconds.

        In the use it would be charged for coming late. Only our own code runs there so far: what it answers tells
        nothing of a record.
        """
        try:
            said = link.ask(Frame({"ask": "load", "trainer": trainer}), seconds=_QUESTION_SECONDS)
        except WireFault as error:
            raise _broken(error) from None
        if said.words != {"said": "loaded"}:
            raise SandboxFault("the trainer's process did not say whether it is ready")
        self._needs_no_loading = True

    def _forget_an_older_version(self) -> None:
        """Count again, and open again, where the data file is another one than before."""
        stamp = tuple(
            (str(path), found.st_mtime_ns, found.st_size, found.st_ino)
            for path in self._settings.files
            if path.exists()
            for found in [path.stat()]
        )
        if stamp != self._version.stamp:
            self.close()
            self._version = _Version(stamp=stamp, facts={})


def _read(said: Frame, reader: Callable[[Frame], T]) -> T:
    try:
        return reader(said)
    except WireFault as error:
        raise _broken(error) from None


def _broken(error: WireFault) -> SandboxFault:
    return SandboxFault(
        "the trainer's process did not do what it was asked",
        got=str(error),
        next_step="state/agent/trainer.log says more; `ringfence-node doctor` tries the walls",
    )


def _raise_refusal(said: Frame) -> None:
    """Raise what the process refused with. Its own words stay in its log: they could carry a record."""
    if said.words.get("said") == "refused":
        kind, summary = _REFUSALS.get(str(said.words.get("code")), (SandboxFault, "the trainer's process failed"))
        raise kind(summary, next_step="state/agent/trainer.log says more")
