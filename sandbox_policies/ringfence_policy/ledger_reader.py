"""What the holds in a ledger add up to: histories, meters, quotes. It reads and computes, and writes nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from ringfence_policy import accounting, canonical
from ringfence_policy.database import Database
from ringfence_policy.errors import LedgerFault
from ringfence_policy.ledger_records import Hold, HoldState, Meter, Quote
from ringfence_policy.mechanism import DpMechanism, History, history_of
from ringfence_policy.vocabulary import Action

T = TypeVar("T")

# What has left the holder, or may have; and what is set aside besides.
_SPENT = frozenset({HoldState.SENDING, HoldState.COMMITTED})
_SPENT_OR_RESERVED = _SPENT | {HoldState.RESERVED}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The epsilon budget of a dataset or of a policy, as last registered."""

    kind: Literal["dataset", "policy"]
    owner_id: str
    dataset_id: str
    epsilon_micro: int
    delta_pico: int

    @property
    def policy_id(self) -> str | None:
        """The policy whose uses count; none when all uses of the dataset do."""
        return self.owner_id if self.kind == "policy" else None

    def cost(self, history: History, *, adaptive: bool) -> int:
        """What of `history` is held against the cap, in millionths, rounded up: see `gated_epsilon_micro`."""
        return accounting.gated_epsilon_micro(
            history, epsilon_cap_micro=self.epsilon_micro, delta_pico=self.delta_pico, adaptive=adaptive
        )


class _TallyLine(NamedTuple):
    policy_id: str
    mechanism: str
    action: str
    state: str
    uses: int


@dataclass(frozen=True)
class _FitPlan:
    history: History
    rounds: int
    asked: int


class LedgerReader:
    """The reading half of `PrivacyLedger`."""

    def __init__(self, database: Database) -> None:
        """Read from a database whose ledger tables exist."""
        self._database = database
        self._mechanisms: dict[str, DpMechanism] = {}
        self._fit_plans: dict[tuple[Budget, DpMechanism, History, bool], _FitPlan] = {}
        self._answers: dict[tuple[Any, ...], Any] = {}
        self._answered_at: tuple[int, int, int] | None = None
        self._is_answering = False

    def history(self, dataset_id: str, *, policy_id: str | None = None, reserved: bool = True) -> History:
        """What was done to a dataset, all policies together or under one.

        Args:
            dataset_id: The dataset.
            policy_id: Only the uses under this policy.
            reserved: Count open reservations too. Without them: what has left the holder or may have.
        """
        states = _SPENT_OR_RESERVED if reserved else _SPENT

        def count() -> History:
            return history_of(
                (self._mechanism(line.mechanism), line.uses)
                for line in self._tally(dataset_id)
                if line.state in states and policy_id in (None, line.policy_id)
            )

        return self._while_unchanged(("history", dataset_id, policy_id, reserved), count)

    def quote(
        self,
        *,
        dataset_id: str,
        policy_id: str,
        mechanism: DpMechanism | None,
        action: Action = Action.TRAIN,
        run_id: str | None = None,
    ) -> Quote:
        """Say what one more use would cost and whether it fits. Changes nothing and promises nothing.

        Args:
            dataset_id: The dataset.
            policy_id: The policy under which it would be used.
            mechanism: The use; none for one that adds no mechanism (an exact evaluation that the policy allows).
            action: `train` needs a round as well; `evaluate` does not.
            run_id: The run that asks. Without it the use counts as one of a new run.

        Raises:
            LedgerFault: Dataset or policy is not registered.
            Unaccountable: The mechanism cannot be analysed together with the history.
        """
        key = ("quote", dataset_id, policy_id, mechanism, action, run_id)
        return self._while_unchanged(
            key, lambda: self._quote(dataset_id, policy_id, mechanism, action=action, run_id=run_id)
        )

    def _quote(
        self, dataset_id: str, policy_id: str, mechanism: DpMechanism | None, *, action: Action, run_id: str | None
    ) -> Quote:
        dataset, policy, max_rounds = self._budgets(dataset_id, policy_id)
        rounds = self._rounds(policy, reserved=True)
        dataset_before, dataset_after = self._before_and_after(dataset, mechanism, run_id=run_id)
        policy_before, policy_after = self._before_and_after(policy, mechanism, run_id=run_id)
        exceeded = {
            "dataset/epsilon": dataset_after > dataset.epsilon_micro,
            "policy/epsilon": policy_after > policy.epsilon_micro,
            "policy/rounds": action == Action.TRAIN and rounds >= max_rounds,
        }
        return Quote(
            policy_epsilon_before_micro=policy_before,
            policy_epsilon_after_micro=policy_after,
            policy_epsilon_cap_micro=policy.epsilon_micro,
            policy_delta_pico=policy.delta_pico,
            dataset_epsilon_before_micro=dataset_before,
            dataset_epsilon_after_micro=dataset_after,
            dataset_epsilon_cap_micro=dataset.epsilon_micro,
            dataset_delta_pico=dataset.delta_pico,
            rounds_used=rounds,
            max_rounds=max_rounds,
            exhausted=tuple(name for name, over in exceeded.items() if over),
        )

    def rounds_that_fit(
        self,
        *,
        dataset_id: str,
        policy_id: str,
        mechanism: DpMechanism,
        at_most: int,
        alongside: History = (),
        run_id: str | None = None,
    ) -> int:
        """How many more rounds of `mechanism` all meters allow; from 0 to `at_most`.

        Computed once per plan: while nothing but this plan's own rounds is added to the history, later answers are the
        first one less the rounds since.

        Args:
            dataset_id: The dataset.
            policy_id: The policy.
            mechanism: What each round does.
            at_most: The plan's rounds.
            alongside: What each round does besides, with counts per round (a private evaluation, say).
            run_id: The run that asks. Without it the rounds count as those of a new run.
        """

        def count() -> int:
            dataset, policy, max_rounds = self._budgets(dataset_id, policy_id)
            return min(
                max(0, max_rounds - self._rounds(policy, reserved=True)),
                self._fit(dataset, mechanism, alongside, at_most=at_most, run_id=run_id),
                self._fit(policy, mechanism, alongside, at_most=at_most, run_id=run_id),
            )

        return self._while_unchanged(("fit", dataset_id, policy_id, mechanism, at_most, alongside, run_id), count)

    def hold(self, hold_id: str) -> Hold | None:
        """The hold of that name, or none."""
        found = self._database.rows(
            "SELECT hold_id, run_id, round_number, attempt, dataset_id, policy_id, mechanism, action, state, "
            "update_digest, detail FROM hold WHERE hold_id = ?",
            (hold_id,),
        )
        return self._hold(found[0]) if found else None

    def holds(self, run_id: str | None = None, *, state: HoldState | None = None) -> list[Hold]:
        """All holds, or those of one run, or of those the ones in one state, in the order they were reserved in."""
        columns = (
            "SELECT hold_id, run_id, round_number, attempt, dataset_id, policy_id, mechanism, action, state, "
            "update_digest, detail FROM hold"
        )
        if run_id is None:
            found = self._database.rows(f"{columns} ORDER BY rowid")
        elif state is None:
            found = self._database.rows(f"{columns} WHERE run_id = ? ORDER BY rowid", (run_id,))
        else:
            found = self._database.rows(
                f"{columns} WHERE run_id = ? AND state = ? ORDER BY rowid", (run_id, str(state))
            )
        return [self._hold(row) for row in found]

    def last_training_round(self, run_id: str) -> int:
        """The last round of a run in which the data was used for training, or may have been; 0 before the first."""
        ((last,),) = self._database.rows(
            "SELECT coalesce(max(round_number), 0) FROM hold "
            "WHERE run_id = ? AND state IN ('reserved', 'sending', 'committed') AND action = 'train'",
            (run_id,),
        )
        return int(last)

    def delta_pico(self, dataset_id: str) -> int:
        """The failure probability, in trillionths, at which a dataset's epsilon is read.

        Raises:
            LedgerFault: The dataset is not registered.
        """
        return self._dataset_budget(dataset_id).delta_pico

    def meters(self) -> list[Meter]:
        """Every meter, recomputed from the holds: datasets first, then policies, each by name."""
        with self._database.transaction() as connection:
            datasets = connection.execute("SELECT dataset_id FROM dataset ORDER BY dataset_id").fetchall()
            policies = connection.execute("SELECT policy_id FROM policy ORDER BY policy_id").fetchall()
            return [
                *(meter for (name,) in datasets for meter in self._dataset_meters(name)),
                *(meter for (name,) in policies for meter in self._policy_meters(name)),
            ]

    def check(self) -> None:
        """Refuse a ledger whose holds were changed behind its back.

        Raises:
            LedgerFault: A hold's state is not its last recorded transition, transitions are missing (those cut off at
                the end are noticed by count), the tally is not the number of holds, or a row refers to one that is
                missing.
        """
        with self._database.transaction() as connection:
            faults = {
                "a hold's state is not its last recorded transition": connection.execute(
                    "SELECT count(*) FROM hold h WHERE state IS NOT (SELECT to_state FROM hold_transition t "
                    "WHERE t.hold_id = h.hold_id ORDER BY seq DESC LIMIT 1)"
                ),
                "recorded transitions are missing": connection.execute(
                    "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'hold_transition'), 0) "
                    "- (SELECT count(*) FROM hold_transition)"
                ),
                "the tally is not the number of holds": connection.execute(
                    "SELECT count(*) FROM (SELECT dataset_id, policy_id, mechanism, action, state, count(*) FROM hold "
                    "GROUP BY 1, 2, 3, 4, 5 EXCEPT SELECT * FROM tally)"
                ),
                "the tally counts holds that are not there": connection.execute(
                    "SELECT (SELECT coalesce(sum(uses), 0) FROM tally) - (SELECT count(*) FROM hold)"
                ),
                "a row refers to one that is missing": connection.execute(
                    "SELECT count(*) FROM pragma_foreign_key_check"
                ),
            }
            found = {fault: cursor.fetchone()[0] for fault, cursor in faults.items()}
        for fault, number in found.items():
            if number != 0:
                raise LedgerFault(
                    f"the ledger was changed from outside: {fault}",
                    expected="0 such rows",
                    got=str(number),
                    where=str(self._database.path),
                    next_step="tell the data officer: what was spent can no longer be proven (docs/holder.md, Back up)",
                )

    # ------------------------------------------------------------------------------------------------------ inside

    def _budgets(self, dataset_id: str, policy_id: str) -> tuple[Budget, Budget, int]:
        policy, max_rounds = self._policy_budget(policy_id)
        if policy.dataset_id != dataset_id:
            raise _unknown("policy", f"{policy_id} for dataset {dataset_id}")
        return self._dataset_budget(dataset_id), policy, max_rounds

    def _dataset_budget(self, dataset_id: str) -> Budget:
        return self._while_unchanged(("dataset", dataset_id), lambda: self._read_dataset_budget(dataset_id))

    def _read_dataset_budget(self, dataset_id: str) -> Budget:
        found = self._database.rows(
            "SELECT epsilon_cap_micro, delta_pico FROM dataset WHERE dataset_id = ?", (dataset_id,)
        )
        if not found:
            raise _unknown("dataset", dataset_id)
        cap, delta = found[0]
        return Budget(kind="dataset", owner_id=dataset_id, dataset_id=dataset_id, epsilon_micro=cap, delta_pico=delta)

    def _policy_budget(self, policy_id: str) -> tuple[Budget, int]:
        return self._while_unchanged(("policy", policy_id), lambda: self._read_policy_budget(policy_id))

    def _read_policy_budget(self, policy_id: str) -> tuple[Budget, int]:
        found = self._database.rows(
            "SELECT dataset_id, epsilon_cap_micro, delta_pico, max_rounds FROM policy WHERE policy_id = ?", (policy_id,)
        )
        if not found:
            raise _unknown("policy", policy_id)
        name, cap, delta, rounds = found[0]
        budget = Budget(kind="policy", owner_id=policy_id, dataset_id=name, epsilon_micro=cap, delta_pico=delta)
        return budget, rounds

    def _before_and_after(
        self, budget: Budget, mechanism: DpMechanism | None, *, run_id: str | None
    ) -> tuple[int, int]:
        adaptive = self._is_adaptive(budget, run_id=run_id)
        before = self.history(budget.dataset_id, policy_id=budget.policy_id)
        after = before if mechanism is None else history_of([*before, (mechanism, 1)])
        spent = budget.cost(before, adaptive=adaptive)
        return spent, max(spent, budget.cost(after, adaptive=adaptive))

    def _dataset_meters(self, dataset_id: str) -> list[Meter]:
        return self._privacy_meters(self._dataset_budget(dataset_id))

    def _policy_meters(self, policy_id: str) -> list[Meter]:
        budget, max_rounds = self._policy_budget(policy_id)
        spent = self._rounds(budget, reserved=False)
        rounds = Meter(
            owner_kind="policy",
            owner_id=policy_id,
            quantity="rounds",
            cap=max_rounds,
            committed=spent,
            reserved=self._rounds(budget, reserved=True) - spent,
        )
        return [*self._privacy_meters(budget), rounds]

    def _privacy_meters(self, budget: Budget) -> list[Meter]:
        spent = self.history(budget.dataset_id, policy_id=budget.policy_id, reserved=False)
        everything = self.history(budget.dataset_id, policy_id=budget.policy_id)
        committed = budget.cost(spent, adaptive=self._several_runs(budget, reserved=False))
        used = budget.cost(everything, adaptive=self._several_runs(budget, reserved=True))
        epsilon = Meter(
            owner_kind=budget.kind,
            owner_id=budget.owner_id,
            quantity="epsilon",
            cap=budget.epsilon_micro,
            committed=committed,
            # Transforms may round a longer history a hair below a shorter one; what is reserved is never negative.
            reserved=max(0, used - committed),
        )
        # Delta is the failure probability at which epsilon is read: the first use takes all of it, later ones no more.
        taken = budget.delta_pico if spent else 0
        delta = Meter(
            owner_kind=budget.kind,
            owner_id=budget.owner_id,
            quantity="delta",
            cap=budget.delta_pico,
            committed=taken,
            reserved=(budget.delta_pico if everything else 0) - taken,
        )
        return [epsilon, delta]

    def _rounds(self, policy: Budget, *, reserved: bool) -> int:
        states = _SPENT_OR_RESERVED if reserved else _SPENT
        return sum(
            line.uses
            for line in self._tally(policy.dataset_id)
            if line.policy_id == policy.owner_id and line.action == Action.TRAIN and line.state in states
        )

    def _tally(self, dataset_id: str) -> list[_TallyLine]:
        return self._while_unchanged(
            ("tally", dataset_id),
            lambda: [
                _TallyLine(*row)
                for row in self._database.rows(
                    "SELECT policy_id, mechanism, action, state, uses FROM tally WHERE dataset_id = ? AND uses > 0",
                    (dataset_id,),
                )
            ],
        )

    def _while_unchanged(self, key: tuple[Any, ...], read: Callable[[], T]) -> T:
        """What `read` gave, until anything in the database may have changed."""
        # Another thread's write between the look at the version and the answer would leave that thread an old one.
        with self._database.turn:
            if not self._is_answering:  # what answers a question asks its own questions of the same state
                version = self._database.version
                if version != self._answered_at:
                    self._answers.clear()
                    self._answered_at = version
            if key not in self._answers:
                outer, self._is_answering = self._is_answering, True
                try:
                    self._answers[key] = read()
                finally:
                    self._is_answering = outer
            answer: T = self._answers[key]
            return answer

    def _is_adaptive(self, budget: Budget, *, run_id: str | None, reserved: bool = True) -> bool:
        """Whether a use by `run_id` may have been chosen after seeing what another run released under this budget.

        A run fixes its mechanisms before it uses data, so it needs another run. None stands for a run that nothing in
        the ledger is of: every run there is another one.
        """
        if run_id is None:
            return self._any_run(budget, reserved=reserved) is not None
        # Where every hold of the dataset is of this run, no policy of it and no state of a hold need be asked.
        whole = self._dataset_budget(budget.dataset_id)
        return self._has_other_runs(whole, run_id, reserved=True) and (
            self._has_other_runs(budget, run_id, reserved=reserved)
        )

    def _has_other_runs(self, budget: Budget, run_id: str, *, reserved: bool) -> bool:
        # Two ranges of the index over runs: the holds of this run, however many, are not looked at.
        sql = (
            "SELECT EXISTS (SELECT 1 FROM hold INDEXED BY hold_of_run WHERE run_id < ?4 AND dataset_id = ?1 "
            "AND (?2 IS NULL OR policy_id = ?2) AND (state IN ('sending', 'committed') OR (?3 AND state = 'reserved'))"
            ") OR EXISTS (SELECT 1 FROM hold INDEXED BY hold_of_run WHERE run_id > ?4 AND dataset_id = ?1 "
            "AND (?2 IS NULL OR policy_id = ?2) AND (state IN ('sending', 'committed') OR (?3 AND state = 'reserved'))"
            ")"
        )
        asked = (budget.dataset_id, budget.policy_id, reserved, run_id)
        return self._while_unchanged(("others", *asked), lambda: bool(self._database.rows(sql, asked)[0][0]))

    def _several_runs(self, budget: Budget, *, reserved: bool) -> bool:
        """Whether what counts against a budget comes from more than one run."""
        if not any(mechanism.sampling_rate < 1 for mechanism, _ in self.history(budget.dataset_id)):
            return False  # a sum of unsampled mechanisms is a filter by itself: their cost does not depend on this
        whole = self._dataset_budget(budget.dataset_id)  # as above
        return self._mixes_runs(whole, reserved=True) and self._mixes_runs(budget, reserved=reserved)

    def _mixes_runs(self, budget: Budget, *, reserved: bool) -> bool:
        key = ("any run", budget.dataset_id, budget.policy_id, reserved)
        one = self._while_unchanged(key, lambda: self._any_run(budget, reserved=reserved))
        return one is not None and self._has_other_runs(budget, one, reserved=reserved)

    def _any_run(self, budget: Budget, *, reserved: bool) -> str | None:
        found = self._database.rows(
            "SELECT run_id FROM hold WHERE dataset_id = ?1 AND (?2 IS NULL OR policy_id = ?2) "
            "AND (state IN ('sending', 'committed') OR (?3 AND state = 'reserved')) LIMIT 1",
            (budget.dataset_id, budget.policy_id, reserved),
        )
        return str(found[0][0]) if found else None

    def _fit(
        self, budget: Budget, mechanism: DpMechanism, alongside: History, *, at_most: int, run_id: str | None
    ) -> int:
        history = self.history(budget.dataset_id, policy_id=budget.policy_id)
        adaptive = self._is_adaptive(budget, run_id=run_id)
        key = (budget, mechanism, alongside, adaptive)
        plan = self._fit_plans.get(key)
        since = None if plan is None else _rounds_since(plan.history, history, mechanism, alongside)
        if plan is not None and since is not None:
            left = plan.rounds - since
            if plan.rounds < plan.asked or left >= at_most:  # else more may fit than was asked for then
                return max(0, min(left, at_most))
        rounds = accounting.rounds_that_fit(
            history,
            mechanism,
            epsilon_micro=budget.epsilon_micro,
            delta_pico=budget.delta_pico,
            at_most=at_most,
            alongside=alongside,
            adaptive=adaptive,
        )
        self._fit_plans[key] = _FitPlan(history, rounds, at_most)
        return rounds

    def _hold(self, row: Sequence[Any]) -> Hold:
        return Hold(
            hold_id=row[0],
            run_id=row[1],
            round_number=row[2],
            attempt=row[3],
            dataset_id=row[4],
            policy_id=row[5],
            mechanism=self._mechanism(row[6]),
            action=Action(row[7]),
            state=HoldState(row[8]),
            update_digest=row[9],
            detail=row[10],
        )

    def _mechanism(self, digest: str) -> DpMechanism:
        if digest not in self._mechanisms:
            ((document,),) = self._database.rows("SELECT document FROM mechanism WHERE digest = ?", (digest,))
            mechanism = DpMechanism.from_document(canonical.decode(document.encode()))
            if mechanism.digest != digest:
                raise LedgerFault("a stored mechanism was changed", expected=digest, got=mechanism.digest)
            self._mechanisms[digest] = mechanism
        return self._mechanisms[digest]


def _rounds_since(base: History, history: History, mechanism: DpMechanism, alongside: History) -> int | None:
    """How many whole rounds lead from `base` to `history`; none if anything else happened."""
    rounds = dict(history).get(mechanism, 0) - dict(base).get(mechanism, 0)
    if rounds < 0:
        return None
    beside = ((other, count * rounds) for other, count in alongside)
    return rounds if history_of([*base, (mechanism, rounds), *beside]) == history else None


def _unknown(kind: str, name: str) -> LedgerFault:
    return LedgerFault(
        f"the ledger does not know this {kind}",
        expected="register_dataset, then register_policy",
        got=f"{kind} {name}",
        next_step="register it before it is used",
    )
