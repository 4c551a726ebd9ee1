"""The ledger: accounts, holds and the append-only journal, with their rules in the database itself.

Every rule here stands by itself: a test shows that each refuses a bad write that bypasses `credits.ledger`.
`amount = CAST(amount AS BIGINT)` is always true on PostgreSQL; SQLite would store 1.5 or 'x' without it.
"""

from alembic import op

revision = "0001"
down_revision = None

_TABLES = """
CREATE TABLE credit_account (
    id TEXT NOT NULL PRIMARY KEY,
    owner_id TEXT NOT NULL,
    granted BIGINT NOT NULL,
    spent BIGINT NOT NULL,
    held BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    CONSTRAINT credit_account_owner UNIQUE (owner_id),
    CONSTRAINT credit_account_named CHECK (length(owner_id) > 0),
    CONSTRAINT credit_account_granted CHECK (granted BETWEEN 0 AND 9007199254740991),
    CONSTRAINT credit_account_spent CHECK (spent >= 0),
    CONSTRAINT credit_account_held CHECK (held >= 0),
    CONSTRAINT credit_account_seq CHECK (seq >= 0),
    CONSTRAINT credit_account_no_overdraft CHECK (granted - spent - held >= 0),
    CONSTRAINT credit_account_integers CHECK (
        granted = CAST(granted AS BIGINT) AND spent = CAST(spent AS BIGINT)
        AND held = CAST(held AS BIGINT) AND seq = CAST(seq AS BIGINT)
    )
);
CREATE TABLE credit_hold (
    id TEXT NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES credit_account (id),
    training_id TEXT NOT NULL,
    amount BIGINT NOT NULL,
    settled BIGINT NOT NULL,
    refunded BIGINT NOT NULL,
    state TEXT NOT NULL,
    expires_at {time} NOT NULL,
    CONSTRAINT credit_hold_training UNIQUE (training_id),
    CONSTRAINT credit_hold_whose UNIQUE (id, account_id, training_id),
    CONSTRAINT credit_hold_amount CHECK (amount > 0),
    CONSTRAINT credit_hold_settled CHECK (settled BETWEEN 0 AND amount),
    CONSTRAINT credit_hold_refunded CHECK (refunded BETWEEN 0 AND settled),
    CONSTRAINT credit_hold_state CHECK (state IN ('held', 'settled', 'released', 'expired')),
    CONSTRAINT credit_hold_taken CHECK ((state = 'settled') = (settled > 0)),
    CONSTRAINT credit_hold_integers CHECK (
        amount = CAST(amount AS BIGINT) AND settled = CAST(settled AS BIGINT)
        AND refunded = CAST(refunded AS BIGINT)
    )
);
CREATE INDEX credit_hold_live ON credit_hold (expires_at) WHERE state = 'held';
CREATE TABLE credit_entry (
    id TEXT NOT NULL PRIMARY KEY,
    account_id TEXT NOT NULL REFERENCES credit_account (id),
    seq BIGINT NOT NULL,
    kind TEXT NOT NULL,
    counterparty TEXT NOT NULL,
    amount BIGINT NOT NULL,
    hold_id TEXT,
    training_id TEXT,
    idempotency_key TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    created_at {time} NOT NULL,
    CONSTRAINT credit_entry_seq UNIQUE (account_id, seq),
    CONSTRAINT credit_entry_key UNIQUE (account_id, idempotency_key),
    CONSTRAINT credit_entry_hold FOREIGN KEY (hold_id, account_id, training_id)
        REFERENCES credit_hold (id, account_id, training_id),
    CONSTRAINT credit_entry_amount CHECK (amount > 0),
    CONSTRAINT credit_entry_kind CHECK (
        kind IN ('grant', 'hold', 'settle', 'release', 'expire', 'refund')
    ),
    CONSTRAINT credit_entry_counterparty CHECK (
        counterparty = CASE
            WHEN kind = 'grant' THEN 'issued'
            WHEN kind IN ('settle', 'refund') THEN 'revenue'
            ELSE 'held'
        END
    ),
    CONSTRAINT credit_entry_names_hold CHECK ((kind = 'grant') = (hold_id IS NULL)),
    CONSTRAINT credit_entry_names_training CHECK ((kind = 'grant') = (training_id IS NULL)),
    CONSTRAINT credit_entry_named CHECK (length(idempotency_key) > 0 AND length(request_hash) = 64),
    CONSTRAINT credit_entry_integers CHECK (
        amount = CAST(amount AS BIGINT) AND seq = CAST(seq AS BIGINT)
    )
);
CREATE UNIQUE INDEX one_hold ON credit_entry (hold_id) WHERE kind = 'hold';
CREATE UNIQUE INDEX one_resolution ON credit_entry (hold_id) WHERE kind IN ('settle', 'release', 'expire')
"""

# A hold is resolved once; after that only the refunded part of a settled one may grow.
_HOLD_MOVES_BADLY = """
    NEW.id <> OLD.id OR NEW.account_id <> OLD.account_id OR NEW.training_id <> OLD.training_id
    OR NEW.amount <> OLD.amount
    OR (OLD.state = 'held' AND NEW.refunded <> 0)
    OR (OLD.state <> 'held' AND (
        NEW.state <> OLD.state OR NEW.settled <> OLD.settled OR NEW.expires_at <> OLD.expires_at
        OR NEW.refunded < OLD.refunded
    ))
"""

_NEXT_SEQ = """
    NEW.seq <> 1 + (SELECT coalesce(max(seq), 0) FROM credit_entry WHERE account_id = NEW.account_id)
"""

_ON_SQLITE = (
    """CREATE TRIGGER credit_entry_no_update BEFORE UPDATE ON credit_entry
    BEGIN SELECT RAISE(ABORT, 'credit_entry is append-only'); END""",
    """CREATE TRIGGER credit_entry_no_delete BEFORE DELETE ON credit_entry
    BEGIN SELECT RAISE(ABORT, 'credit_entry is append-only'); END""",
    f"""CREATE TRIGGER credit_entry_gapless BEFORE INSERT ON credit_entry WHEN {_NEXT_SEQ}
    BEGIN SELECT RAISE(ABORT, 'credit_entry.seq has no gaps'); END""",
    f"""CREATE TRIGGER credit_hold_moves BEFORE UPDATE ON credit_hold WHEN {_HOLD_MOVES_BADLY}
    BEGIN SELECT RAISE(ABORT, 'a hold is resolved once'); END""",
    """CREATE TRIGGER credit_hold_no_delete BEFORE DELETE ON credit_hold
    BEGIN SELECT RAISE(ABORT, 'credit_hold is kept'); END""",
    """CREATE TRIGGER credit_account_no_delete BEFORE DELETE ON credit_account
    BEGIN SELECT RAISE(ABORT, 'credit_account is kept'); END""",
)

# Class 23 makes a refusal an IntegrityError, as on SQLite. TRUNCATE needs its own triggers.
_ON_POSTGRESQL = (
    """CREATE FUNCTION credit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
    END $$""",
    f"""CREATE FUNCTION credit_entry_gapless() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF {_NEXT_SEQ} THEN
            RAISE EXCEPTION 'credit_entry.seq has no gaps' USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN NEW;
    END $$""",
    """CREATE TRIGGER credit_entry_no_update BEFORE UPDATE ON credit_entry
    FOR EACH ROW EXECUTE FUNCTION credit_refuse('credit_entry is append-only')""",
    """CREATE TRIGGER credit_entry_no_delete BEFORE DELETE ON credit_entry
    FOR EACH ROW EXECUTE FUNCTION credit_refuse('credit_entry is append-only')""",
    """CREATE TRIGGER credit_entry_no_truncate BEFORE TRUNCATE ON credit_entry
    EXECUTE FUNCTION credit_refuse('credit_entry is append-only')""",
    """CREATE TRIGGER credit_entry_gapless BEFORE INSERT ON credit_entry
    FOR EACH ROW EXECUTE FUNCTION credit_entry_gapless()""",
    f"""CREATE TRIGGER credit_hold_moves BEFORE UPDATE ON credit_hold
    FOR EACH ROW WHEN ({_HOLD_MOVES_BADLY}) EXECUTE FUNCTION credit_refuse('a hold is resolved once')""",
    """CREATE TRIGGER credit_hold_no_delete BEFORE DELETE ON credit_hold
    FOR EACH ROW EXECUTE FUNCTION credit_refuse('credit_hold is kept')""",
    """CREATE TRIGGER credit_hold_no_truncate BEFORE TRUNCATE ON credit_hold
    EXECUTE FUNCTION credit_refuse('credit_hold is kept')""",
    """CREATE TRIGGER credit_account_no_delete BEFORE DELETE ON credit_account
    FOR EACH ROW EXECUTE FUNCTION credit_refuse('credit_account is kept')""",
    """CREATE TRIGGER credit_account_no_truncate BEFORE TRUNCATE ON credit_account
    EXECUTE FUNCTION credit_refuse('credit_account is kept')""",
)


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    tables = _TABLES.format(time="DATETIME" if on_sqlite else "TIMESTAMPTZ")
    for statement in (*tables.split(";"), *(_ON_SQLITE if on_sqlite else _ON_POSTGRESQL)):
        op.execute(statement)
