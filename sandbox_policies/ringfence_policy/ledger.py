"""The privacy ledger: what was done to a holder's data, kept so that no use is ever forgotten and no cap ever passed.

Events are stored, numbers are derived. A hold is one use of a dataset under a policy by one mechanism; epsilon is not
additive, so every meter is recomputed from the holds inside the transaction that changes them. The order is always:
reserve (durable), then open the data; mark sending (durable), then send; commit when it has arrived. A crash may waste
budget and can never hide a use: from `sending` on, unknown means spent.

    reserved ──> sending ──> committed
        └──────> released

Not all that leaves a holder is an update. Where the way in which a use ended may itself tell of a record, it is charged
without having been sent: it passes through `sending` in one step, under the digest of nothing.

Meters: the dataset's epsilon and delta across all runs and policies, and each policy's epsilon, delta and rounds.
Caps are rounded down and costs up, both to whole millionths. Where sampled mechanisms come from more than one run, the
later run's may have been chosen after seeing the earlier one's outputs: epsilon is then held against the cap through a
filter that allows for it (`accounting.gated_epsilon_micro`). The same clock-free rules hold for one process and for
many: SQLite's write lock orders them.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ringfence_policy import accounting, canonical, ledger_tables
from ringfence_policy.accounting import PICO
from ringfence_policy.database import Database
from ringfence_policy.errors import BudgetExhausted, LedgerFault, TrustRefused
from ringfence_policy.ledger_reader import Budget, LedgerReader
from ringfence_policy.ledger_records import Hold, HoldState, Meter, Quote
from ringfence_policy.mechanism import MICRO, DpMechanism, History, history_of
from ringfence_policy.vocabulary import Action

__all__ = ["NOTHING_LEFT", "Hold", "HoldState", "Meter", "PrivacyLedger", "Quote", "now_ms"]

# What stands for an update's digest where a use was charged of which nothing left.
NOTHING_LEFT = canonical.digest("charged, and nothing left")

_FORWARD = (
    (HoldState.RESERVED, HoldState.SENDING),
    (HoldState.SENDING, HoldState.COMMITTED),
    (HoldState.RESERVED, HoldState.RELEASED),
)


def now_ms() -> int:
    """Milliseconds since 1970, from the machine's clock. Kept for the reader; no rule of the ledger depends on it."""
    return time.time_ns() // 1_000_000


class PrivacyLedger(LedgerReader):
    """A holder's ledger in its database. Several may be open on one file, in several processes.

    Every method that writes runs in `Database.transaction`, and joins the caller's if one is open: a decision, its
    reservation and its evidence record become durable together.
    """

    def __init__(self, database: Database, *, clock: Callable[[], int] = now_ms) -> None:
        """Open the ledger, creating its tables if there are none.

        Raises:
            LedgerFault: The file is another version's, or its holds do not match their recorded transitions.
        """
        super().__init__(database)
        self._clock = clock
        database.install("privacy ledger", version=ledger_tables.VERSION, statements=ledger_tables.STATEMENTS)
        self.check()

    # ---------------------------------------------------------------------------------------------- registration

    def register_dataset(self, dataset_id: str, *, fingerprint: str, epsilon_micro: int, delta_pico: int) -> bool:
        """Put a dataset under the ledger, or note that it has changed. What was spent on it stays spent.

        A new fingerprint is a new version of the same dataset: one added row must not reset the budget. A lower cap
        holds from now on, even below what is spent. A higher cap or another delta would need a statement signed by the
        data officer; this ledger does not take one yet, so it is refused.

        Args:
            dataset_id: The holder's name for the data; the people in it, not the file.
            fingerprint: Digest of the present content. Secret: it identifies the data; it never leaves the ledger.
            epsilon_micro: Cap on epsilon over all uses ever, in millionths, rounded down.
            delta_pico: The failure probability at which epsilon is read, in trillionths.

        Returns:
            Whether something new was recorded: a first registration, a new version, or a lower cap.

        Raises:
            TrustRefused: The cap would rise or delta change, or the very same content is registered under another
                name: a new name must not open a fresh budget for the same people.
            LedgerFault: The ledger cannot record it.
        """
        with self._database.transaction() as connection:
            known = connection.execute(
                "SELECT epsilon_cap_micro, delta_pico FROM dataset WHERE dataset_id = ?", (dataset_id,)
            ).fetchone()
            namesake = connection.execute(
                "SELECT dataset_id FROM dataset_version WHERE fingerprint = ? AND dataset_id <> ?",
                (fingerprint, dataset_id),
            ).fetchone()
            if namesake is not None:
                raise TrustRefused(
                    "this content is already registered under another name",
                    expected=f"dataset {namesake[0]}",
                    got=f"dataset {dataset_id}",
                    next_step="use the name under which it was registered: its budget goes with it",
                )
            if known is None:
                connection.execute("INSERT INTO dataset VALUES (?, ?, ?)", (dataset_id, epsilon_micro, delta_pico))
            else:
                _refuse_more(dataset_id, known, (epsilon_micro, delta_pico))
                connection.execute(
                    "UPDATE dataset SET epsilon_cap_micro = ? WHERE dataset_id = ?", (epsilon_micro, dataset_id)
                )
            latest = connection.execute(
                "SELECT fingerprint, epsilon_cap_micro FROM dataset_version WHERE dataset_id = ? ORDER BY seq DESC",
                (dataset_id,),
            ).fetchone()
            if latest == (fingerprint, epsilon_micro):
                return False
            connection.execute(
                "INSERT INTO dataset_version (dataset_id, fingerprint, epsilon_cap_micro, at_ms) VALUES (?, ?, ?, ?)",
                (dataset_id, fingerprint, epsilon_micro, self._clock()),
            )
            self._rewrite(self._dataset_meters(dataset_id), may_grow=True)
            return True

    def register_policy(
        self, policy_id: str, *, dataset_id: str, version: int, epsilon_micro: int, delta_pico: int, max_rounds: int
    ) -> bool:
        """Put a policy under the ledger, or take over its next version. What was used under it stays used.

        The caller has verified the policy's signature. A new version may raise or lower the policy's own caps; the
        dataset's cap holds besides, whatever policies say.

        Returns:
            Whether a new version was recorded.

        Raises:
            TrustRefused: An older version, the same version with other caps, or another dataset under the same name.
            LedgerFault: The dataset is not registered, or the ledger cannot record it.
        """
        new = (version, epsilon_micro, delta_pico, max_rounds)
        with self._database.transaction() as connection:
            known = connection.execute(
                "SELECT dataset_id, version, epsilon_cap_micro, delta_pico, max_rounds FROM policy WHERE policy_id = ?",
                (policy_id,),
            ).fetchone()
            if known == (dataset_id, *new):
                return False
            if known is not None and (known[0] != dataset_id or version <= known[1]):
                raise TrustRefused(
                    "a policy keeps its dataset, and its terms change only with a higher version",
                    expected=f"dataset {known[0]}, version {known[1]} unchanged or a higher one",
                    got=f"dataset {dataset_id}, version {version}",
                    where=f"policy {policy_id}",
                    next_step="sign the changed policy under the next version number",
                )
            if known is None:
                connection.execute("INSERT INTO policy VALUES (?, ?, ?, ?, ?, ?)", (policy_id, dataset_id, *new))
            else:
                connection.execute(
                    "UPDATE policy SET version = ?, epsilon_cap_micro = ?, delta_pico = ?, max_rounds = ? "
                    "WHERE policy_id = ?",
                    (*new, policy_id),
                )
            connection.execute("INSERT INTO policy_version VALUES (?, ?, ?, ?, ?, ?)", (policy_id, *new, self._clock()))
            self._rewrite(self._policy_meters(policy_id), may_grow=True)
            return True

    # -------------------------------------------------------------------------------------------------- transitions

    def reserve(
        self,
        hold_id: str,
        *,
        run_id: str,
        round_number: int,
        attempt: int,
        dataset_id: str,
        policy_id: str,
        mechanism: DpMechanism,
        action: Action,
    ) -> Hold:
        """Set budget aside for one use, on disk, before the data is opened.

        All meters move in one transaction or none does. Asking again under the same id with the same content changes
        nothing and returns the hold as it stands.

        Args:
            hold_id: Name of the use.
            run_id: The run.
            round_number: The round, from 1; 0 outside rounds.
            attempt: The attempt at that round, from 1.
            dataset_id: The dataset that will be used.
            policy_id: The policy that permits it.
            mechanism: What will be applied.
            action: `train` counts as a round; `evaluate` does not.

        Raises:
            BudgetExhausted: A meter has too little left. The message names it, its limit, what would be used, and a
                next step.
            LedgerFault: The id stands for another use or for one that was released, dataset or policy is unknown, or
                the ledger cannot record.
            Unaccountable: The mechanism cannot be analysed together with the history.
        """
        content = (hold_id, run_id, round_number, attempt, dataset_id, policy_id, mechanism, Action(action))
        if not self._database.in_transaction and self.hold(hold_id) is None:
            # Work out (and remember) the numbers before taking the write lock, so that others wait for less.
            self.quote(dataset_id=dataset_id, policy_id=policy_id, mechanism=mechanism, run_id=run_id)
        with self._database.transaction():
            known = self.hold(hold_id)
            if known is not None:
                return _same_use(known, content)
            self._budgets(dataset_id, policy_id)  # a clear message before a foreign key's
            self._insert(content)
            meters = self._meters_of(dataset_id, policy_id)
            moved = [meter for meter in meters if meter.quantity != "rounds" or action == Action.TRAIN]
            if exceeded := [meter for meter in moved if meter.exceeded]:
                raise self._exhausted(exceeded[0], dataset_id, mechanism)
            self._rewrite(meters, may_grow=False)
            return self._known(hold_id)

    def mark_sending(self, hold_id: str, *, update_digest: str) -> Hold:
        """Record, on disk, that the update named by its digest is about to leave. Call before the first byte does.

        From here on the use counts as spent, whatever happens. Repeating it for the same bytes changes nothing: the
        same noisy numbers sent twice tell no more than once.

        Raises:
            LedgerFault: The hold was released, or is already sending other bytes, or cannot be recorded.
        """
        return self._move(hold_id, HoldState.SENDING, update_digest=update_digest)

    def commit(self, hold_id: str) -> Hold:
        """Record that the update has left. Repeating it changes nothing.

        Raises:
            LedgerFault: The hold was never marked sending, or cannot be recorded.
        """
        return self._move(hold_id, HoldState.COMMITTED)

    def release(self, hold_id: str, reason: str) -> Hold:
        """Give a reservation back: nothing left the holder, and nothing will. Repeating it changes nothing.

        Raises:
            LedgerFault: The hold is sending or committed: what may have left is never given back.
        """
        return self._move(hold_id, HoldState.RELEASED, detail=reason)

    def charge(self, hold_id: str, reason: str) -> Hold:
        """Count a reserved use as spent of which nothing left and nothing will. Repeating it changes nothing.

        Raises:
            LedgerFault: The hold was released, or something of it may have left.
        """
        with self._database.transaction():
            self._move(hold_id, HoldState.SENDING, update_digest=NOTHING_LEFT)
            return self._move(hold_id, HoldState.COMMITTED, detail=reason)

    def recover(
        self,
        *,
        run_id: str | None = None,
        charged: Callable[[str], bool] = lambda _: False,
        record: Callable[[Hold], object] = lambda _: None,
    ) -> list[Hold]:
        """Settle what a crash left open: what was reserved is released or charged, what may have left is committed.

        Call when no process of the run (or, without `run_id`, of any run) is alive. If one were, it would find its
        hold settled when it marks it sending, and would be refused: early recovery wastes work, never budget.

        Args:
            run_id: The run; None for every run.
            charged: Whether a run's reservations, by its id, are charged: the crash itself may tell of a record.
            record: Is given each hold as it then stands, before the next one changes.

        Returns:
            The holds that changed, as they now stand.
        """
        with self._database.transaction() as connection:
            found = connection.execute(
                "SELECT hold_id, run_id, state FROM hold WHERE state IN ('reserved', 'sending') "
                "AND (?1 IS NULL OR run_id = ?1) ORDER BY rowid",
                (run_id,),
            ).fetchall()
            settled = []
            for hold_id, of_run, state in found:
                if state == HoldState.SENDING:
                    settled.append(self.commit(hold_id))
                else:
                    settle = self.charge if charged(of_run) else self.release
                    settled.append(settle(hold_id, "the run was interrupted before anything was sent"))
                record(settled[-1])
            return settled

    # ------------------------------------------------------------------------------------------------------ inside

    def _move(self, hold_id: str, to: HoldState, *, update_digest: str | None = None, detail: str = "") -> Hold:
        with self._database.transaction() as connection:
            known = self._known(hold_id)
            if _already(known, to, update_digest):
                return known
            if (known.state, to) not in _FORWARD:
                raise LedgerFault(
                    f"hold {hold_id} cannot become {to}",
                    expected=", ".join(f"{before} to {after}" for before, after in _FORWARD),
                    got=f"{known.state} to {to}" + (" with other bytes" if known.state is to else ""),
                    next_step="a use that may have left is spent; try again under a new attempt",
                )
            connection.execute(
                "UPDATE hold SET state = ?, update_digest = coalesce(?, update_digest), detail = ?, changed_ms = ? "
                "WHERE hold_id = ?",
                (str(to), update_digest, detail, self._clock(), hold_id),
            )
            if to is not HoldState.COMMITTED:  # what is sending counts as spent already: no meter moves
                self._rewrite(self._meters_of(known.dataset_id, known.policy_id), may_grow=True)
            return replace(known, state=to, update_digest=update_digest or known.update_digest, detail=detail)

    def _insert(self, content: tuple[str, str, int, int, str, str, DpMechanism, Action]) -> None:
        *names, mechanism, action = content
        connection = self._database.connection
        connection.execute(
            "INSERT INTO mechanism VALUES (?, ?) ON CONFLICT DO NOTHING",
            (mechanism.digest, canonical.encode(mechanism.to_document()).decode()),
        )
        connection.execute(
            "INSERT INTO hold (hold_id, run_id, round_number, attempt, dataset_id, policy_id, mechanism, action, "
            "state, detail, changed_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'reserved', '', ?)",
            (*names, mechanism.digest, str(action), self._clock()),
        )

    def _known(self, hold_id: str) -> Hold:
        known = self.hold(hold_id)
        if known is None:
            raise LedgerFault(f"no hold {hold_id}", expected="a hold made by reserve", got="none of that name")
        return known

    def _meters_of(self, dataset_id: str, policy_id: str) -> list[Meter]:
        return self._while_unchanged(
            ("meters", dataset_id, policy_id),
            lambda: [*self._dataset_meters(dataset_id), *self._policy_meters(policy_id)],
        )

    def _rewrite(self, meters: Iterable[Meter], *, may_grow: bool) -> None:
        """Store recomputed meters. Only registration and settling may lift a ceiling; a reservation never does.

        The ceiling is the cap, or what was already used when the cap was lowered below it. The table's CHECK holds
        every meter under its ceiling: the second lock behind the comparison in `reserve`.
        """
        connection = self._database.connection
        rows = [
            (meter.cap, meter.committed, meter.reserved, meter.owner_kind, meter.owner_id, meter.quantity,
             max(meter.cap, meter.committed + meter.reserved))
            for meter in meters
        ]  # fmt: skip
        if may_grow:
            connection.executemany(
                "INSERT INTO meter (cap, committed, reserved, owner_kind, owner_id, quantity, ceiling) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET cap = excluded.cap, "
                "committed = excluded.committed, reserved = excluded.reserved, ceiling = excluded.ceiling",
                rows,
            )
            return
        written = connection.executemany(
            "UPDATE meter SET cap = ?, committed = ?, reserved = ? "
            "WHERE owner_kind = ? AND owner_id = ? AND quantity = ?",
            [row[:-1] for row in rows],
        )
        if written.rowcount != len(rows):
            raise LedgerFault("a meter is missing", expected=f"{len(rows)} meters", got=f"{written.rowcount}")

    def _exhausted(self, meter: Meter, dataset_id: str, mechanism: DpMechanism) -> BudgetExhausted:
        where = f"{meter.owner_kind} {meter.owner_id}"
        if meter.quantity != "epsilon":
            return BudgetExhausted(
                f"no {meter.quantity} left",
                expected=f"at most {meter.cap} {meter.quantity}",
                got=f"{meter.committed + meter.reserved} with this use",
                where=where,
                next_step="ask the data holder for a new version of the policy",
            )
        if meter.owner_kind == "dataset":
            budget = self._dataset_budget(dataset_id)
        else:
            budget, _ = self._policy_budget(meter.owner_id)
        with_it = self.history(dataset_id, policy_id=budget.policy_id)
        before = history_of((used, count - (used == mechanism)) for used, count in with_it)
        spent = budget.cost(before, adaptive=self._several_runs(budget, reserved=True))
        return BudgetExhausted(
            "too little privacy budget is left",
            expected=f"epsilon within {meter.cap / MICRO:.6f} at delta {budget.delta_pico / PICO:g}, "
            f"of which {max(0, meter.cap - spent) / MICRO:.6f} is left",
            got=f"this use needs {(meter.committed + meter.reserved - spent) / MICRO:.6f}",
            where=where,
            next_step=_how_it_would_fit(before, mechanism, budget),
        )


def _refuse_more(dataset_id: str, known: tuple[int, int], new: tuple[int, int]) -> None:
    if new[0] > known[0] or new[1] != known[1]:
        raise TrustRefused(
            "a dataset's budget cannot be raised, nor its delta changed",
            expected=f"epsilon cap at most {known[0] / MICRO:.6f}, delta {known[1] / PICO:g}",
            got=f"epsilon cap {new[0] / MICRO:.6f}, delta {new[1] / PICO:g}",
            where=f"dataset {dataset_id}",
            next_step="keep the registered budget; raising it would need a statement signed by the data officer, which "
            "this version does not take yet",
        )


def _same_use(known: Hold, content: tuple[Any, ...]) -> Hold:
    present = (
        known.hold_id,
        known.run_id,
        known.round_number,
        known.attempt,
        known.dataset_id,
        known.policy_id,
        known.mechanism,
        known.action,
    )
    if present != content:
        raise LedgerFault(
            f"hold {known.hold_id} stands for another use",
            expected="the run, round, attempt, dataset, policy, mechanism and action it was reserved with",
            got="something else under the same id",
            next_step="give each use its own hold id",
        )
    if known.state is HoldState.RELEASED:
        raise LedgerFault(
            f"hold {known.hold_id} was released and reserves nothing any more",
            expected="an open hold",
            got=f"released: {known.detail}",
            next_step="reserve again under a new attempt",
        )
    return known


def _already(known: Hold, to: HoldState, update_digest: str | None) -> bool:
    if to is HoldState.SENDING:
        return known.state in {HoldState.SENDING, HoldState.COMMITTED} and known.update_digest == update_digest
    return known.state is to


def _how_it_would_fit(before: History, mechanism: DpMechanism, budget: Budget) -> str:
    larger = "ask the data holder for a larger budget"
    if any(used.sampling_rate < 1 for used in (mechanism, *(used for used, _ in before))):
        return f"raise the noise multiplier, or {larger}"  # the least that fits would take seconds to find
    try:
        least = accounting.calibrate_noise(
            history=before,
            mechanism=mechanism,
            uses=1,
            epsilon_micro=budget.epsilon_micro,
            delta_pico=budget.delta_pico,
        )
    except BudgetExhausted:
        return f"no amount of noise makes one more use fit; {larger}"
    return f"raise the noise multiplier to at least {least.noise_multiplier:.6f}, or {larger}"
