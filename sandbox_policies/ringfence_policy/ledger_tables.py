"""The privacy ledger's tables, with the rules that SQLite itself enforces whatever the code above it does.

The second lock: states move only forward, what happened is never changed or deleted, every transition of a hold is
recorded by the database itself, a dataset's cap never rises, and a meter never shows more than its ceiling.
"""

VERSION = 1

_TABLES = (
    """CREATE TABLE dataset (
        dataset_id TEXT PRIMARY KEY,
        epsilon_cap_micro INTEGER NOT NULL CHECK (epsilon_cap_micro >= 0),
        delta_pico INTEGER NOT NULL CHECK (delta_pico >= 0 AND delta_pico < 1000000000000)
    ) STRICT""",
    """CREATE TABLE dataset_version (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        dataset_id TEXT NOT NULL REFERENCES dataset,
        fingerprint TEXT NOT NULL,
        epsilon_cap_micro INTEGER NOT NULL,
        at_ms INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE policy (
        policy_id TEXT PRIMARY KEY,
        dataset_id TEXT NOT NULL REFERENCES dataset,
        version INTEGER NOT NULL CHECK (version >= 1),
        epsilon_cap_micro INTEGER NOT NULL CHECK (epsilon_cap_micro >= 0),
        delta_pico INTEGER NOT NULL CHECK (delta_pico >= 0 AND delta_pico < 1000000000000),
        max_rounds INTEGER NOT NULL CHECK (max_rounds >= 0),
        UNIQUE (policy_id, dataset_id)
    ) STRICT""",
    """CREATE TABLE policy_version (
        policy_id TEXT NOT NULL REFERENCES policy,
        version INTEGER NOT NULL,
        epsilon_cap_micro INTEGER NOT NULL,
        delta_pico INTEGER NOT NULL,
        max_rounds INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (policy_id, version)
    ) STRICT""",
    """CREATE TABLE mechanism (
        digest TEXT PRIMARY KEY,
        document TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE hold (
        hold_id TEXT PRIMARY KEY,
        run_id TEXT NOT NULL,
        round_number INTEGER NOT NULL CHECK (round_number >= 0),
        attempt INTEGER NOT NULL CHECK (attempt >= 1),
        dataset_id TEXT NOT NULL,
        policy_id TEXT NOT NULL,
        mechanism TEXT NOT NULL REFERENCES mechanism,
        action TEXT NOT NULL CHECK (action IN ('train', 'evaluate')),
        state TEXT NOT NULL CHECK (state IN ('reserved', 'sending', 'committed', 'released')),
        update_digest TEXT,
        detail TEXT NOT NULL,
        changed_ms INTEGER NOT NULL,
        CHECK ((state IN ('sending', 'committed')) = (update_digest IS NOT NULL)),
        FOREIGN KEY (policy_id, dataset_id) REFERENCES policy (policy_id, dataset_id)
    ) STRICT""",
    # How many holds there are of each sort, kept by the triggers below, so that a round costs the same after ten uses
    # and after ten thousand. Opening the ledger counts the holds again and refuses any difference.
    """CREATE TABLE tally (
        dataset_id TEXT NOT NULL,
        policy_id TEXT NOT NULL,
        mechanism TEXT NOT NULL REFERENCES mechanism,
        action TEXT NOT NULL,
        state TEXT NOT NULL,
        uses INTEGER NOT NULL CHECK (uses >= 0),
        PRIMARY KEY (dataset_id, policy_id, mechanism, action, state)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX hold_of_run ON hold (run_id, state)",
    """CREATE TABLE hold_transition (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        hold_id TEXT NOT NULL REFERENCES hold,
        from_state TEXT,
        to_state TEXT NOT NULL,
        detail TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX transition_of_hold ON hold_transition (hold_id, seq)",
    """CREATE TABLE meter (
        owner_kind TEXT NOT NULL CHECK (owner_kind IN ('dataset', 'policy')),
        owner_id TEXT NOT NULL,
        quantity TEXT NOT NULL CHECK (quantity IN ('epsilon', 'delta', 'rounds')),
        cap INTEGER NOT NULL CHECK (cap >= 0),
        ceiling INTEGER NOT NULL CHECK (ceiling >= cap),
        committed INTEGER NOT NULL CHECK (committed >= 0),
        reserved INTEGER NOT NULL CHECK (reserved >= 0),
        PRIMARY KEY (owner_kind, owner_id, quantity),
        CHECK (committed + reserved <= ceiling)
    ) STRICT""",
)

_RECORD_TRANSITIONS = (
    """CREATE TRIGGER hold_starts_reserved BEFORE INSERT ON hold WHEN NEW.state <> 'reserved'
    BEGIN SELECT RAISE(ABORT, 'a hold starts as reserved'); END""",
    """CREATE TRIGGER hold_started AFTER INSERT ON hold
    BEGIN INSERT INTO hold_transition (hold_id, from_state, to_state, detail, at_ms)
        VALUES (NEW.hold_id, NULL, NEW.state, NEW.detail, NEW.changed_ms);
        INSERT INTO tally VALUES (NEW.dataset_id, NEW.policy_id, NEW.mechanism, NEW.action, NEW.state, 1)
        ON CONFLICT DO UPDATE SET uses = uses + 1; END""",
    """CREATE TRIGGER hold_moves_forward BEFORE UPDATE ON hold
    WHEN NOT (
        ((OLD.state = 'reserved' AND NEW.state IN ('sending', 'released'))
            OR (OLD.state = 'sending' AND NEW.state = 'committed' AND NEW.update_digest = OLD.update_digest))
        AND (NEW.hold_id, NEW.run_id, NEW.round_number, NEW.attempt, NEW.dataset_id, NEW.policy_id, NEW.mechanism,
             NEW.action)
          = (OLD.hold_id, OLD.run_id, OLD.round_number, OLD.attempt, OLD.dataset_id, OLD.policy_id, OLD.mechanism,
             OLD.action))
    BEGIN SELECT RAISE(ABORT, 'a hold moves reserved, sending, committed, or reserved, released; nothing else'); END""",
    """CREATE TRIGGER hold_moved AFTER UPDATE ON hold
    BEGIN INSERT INTO hold_transition (hold_id, from_state, to_state, detail, at_ms)
        VALUES (NEW.hold_id, OLD.state, NEW.state, NEW.detail, NEW.changed_ms);
        UPDATE tally SET uses = uses - 1
        WHERE (dataset_id, policy_id, mechanism, action, state)
            = (OLD.dataset_id, OLD.policy_id, OLD.mechanism, OLD.action, OLD.state);
        INSERT INTO tally VALUES (NEW.dataset_id, NEW.policy_id, NEW.mechanism, NEW.action, NEW.state, 1)
        ON CONFLICT DO UPDATE SET uses = uses + 1; END""",
    """CREATE TRIGGER dataset_cap_never_rises BEFORE UPDATE ON dataset
    WHEN NEW.epsilon_cap_micro > OLD.epsilon_cap_micro OR NEW.delta_pico <> OLD.delta_pico
        OR NEW.dataset_id <> OLD.dataset_id
    BEGIN SELECT RAISE(ABORT, 'a dataset keeps its delta, and its cap never rises'); END""",
    """CREATE TRIGGER policy_version_rises BEFORE UPDATE ON policy
    WHEN NEW.version <= OLD.version OR NEW.policy_id <> OLD.policy_id OR NEW.dataset_id <> OLD.dataset_id
    BEGIN SELECT RAISE(ABORT, 'a policy keeps its dataset, and its version rises'); END""",
)


def _kept(table: str, *actions: str) -> tuple[str, ...]:
    return tuple(
        f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is never changed by {action}'); END"
        for action in actions
    )


STATEMENTS: tuple[str, ...] = (
    *_TABLES,
    *_RECORD_TRANSITIONS,
    *(
        statement
        for table in ("dataset_version", "policy_version", "mechanism", "hold_transition")
        for statement in _kept(table, "UPDATE", "DELETE")
    ),
    *(statement for table in ("dataset", "policy", "hold", "tally", "meter") for statement in _kept(table, "DELETE")),
)
