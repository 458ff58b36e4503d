"""The store's tables. A change here is a new SCHEMA_VERSION and a migration, never an edit of what is in the field."""

SCHEMA_VERSION = 7

_ENROLLMENT = (
    """CREATE TABLE IF NOT EXISTS claim(
        id TEXT PRIMARY KEY,
        claim TEXT NOT NULL         -- Claim, JSON
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS certificate(
        serial TEXT PRIMARY KEY,    -- hex
        certificate TEXT NOT NULL   -- Certificate, JSON
    ) STRICT, WITHOUT ROWID""",
)

_COMMANDS = (
    """CREATE TABLE IF NOT EXISTS command(
        id TEXT PRIMARY KEY,
        device TEXT NOT NULL,
        command TEXT NOT NULL       -- CommandRecord, JSON
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS configuration(
        device TEXT PRIMARY KEY,    -- or '*', for all
        configuration TEXT NOT NULL -- Configuration, JSON
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS reported(
        device TEXT PRIMARY KEY,
        reported TEXT NOT NULL,     -- the last Reported, JSON
        ts INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
)

_ROLLOUTS = (
    """CREATE TABLE IF NOT EXISTS rollout(
        id TEXT PRIMARY KEY,
        rollout TEXT NOT NULL       -- Rollout, JSON
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS attempt(
        rollout TEXT NOT NULL,
        device TEXT NOT NULL,
        attempt TEXT NOT NULL,      -- Attempt, JSON
        PRIMARY KEY (rollout, device)
    ) STRICT, WITHOUT ROWID""",
)

SCHEMA = (
    "CREATE TABLE counter(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    """CREATE TABLE device(
        id TEXT PRIMARY KEY,
        public_key TEXT NOT NULL,   -- Ed25519, hex
        revoked INTEGER NOT NULL DEFAULT 0,
        state TEXT,                 -- the last DeviceState, JSON
        info TEXT,                  -- the last DeviceInfo, JSON
        seen_ts INTEGER
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE task(
        name TEXT PRIMARY KEY,
        layout TEXT NOT NULL,       -- ModelLayout rows, JSON
        metric TEXT NOT NULL,
        evaluation TEXT NOT NULL,   -- path of the held-out examples, or empty
        elapsed_s REAL NOT NULL,
        why TEXT NOT NULL,
        better TEXT NOT NULL DEFAULT 'higher'  -- value of the metric; or 'lower'
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE plan(
        task TEXT NOT NULL,
        revision INTEGER NOT NULL,
        plan TEXT NOT NULL,         -- Plan, JSON
        layout TEXT NOT NULL,
        PRIMARY KEY (task, revision)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE release(
        task TEXT NOT NULL,
        version INTEGER NOT NULL,
        plan_revision INTEGER NOT NULL,
        fingerprint TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        vector BLOB,                -- float32 little-endian; NULL once pruned
        memory BLOB,                -- state of rule and server optimizer, what was meant and not published
        share REAL NOT NULL,        -- b / K
        num_examples INTEGER NOT NULL,
        step_norm REAL NOT NULL,
        num_bytes INTEGER NOT NULL,
        elapsed_s REAL NOT NULL,
        ts INTEGER NOT NULL,
        value REAL,                 -- measured on the held-out set
        loss REAL,
        state TEXT NOT NULL DEFAULT 'released',  -- or 'canary', or 'withheld'
        PRIMARY KEY (task, version)
    ) STRICT""",
    """CREATE TABLE ledger(
        id INTEGER PRIMARY KEY,     -- record order
        device TEXT NOT NULL,
        incarnation TEXT NOT NULL,
        seq INTEGER NOT NULL,
        task TEXT NOT NULL,
        base_version INTEGER NOT NULL,
        num_bytes INTEGER NOT NULL,
        verdict TEXT NOT NULL,      -- Result, JSON, as first told
        ts INTEGER NOT NULL,
        disposal TEXT CHECK (disposal IN ('buffered', 'counted', 'quarantined')),  -- NULL: was refused
        version INTEGER,            -- that counted it; of a canary, or withheld: that would have
        place INTEGER,              -- in the order of summation
        staleness INTEGER,          -- when it was counted
        why TEXT NOT NULL DEFAULT '',
        norm REAL,
        scale REAL,                 -- by which it is counted
        update_bytes BLOB,          -- the Update as it was signed; NULL once pruned
        UNIQUE (device, incarnation, seq)
    ) STRICT""",
    "CREATE INDEX ledger_by_disposal ON ledger(task, disposal, version)",
    "CREATE INDEX IF NOT EXISTS release_by_sha256 ON release(sha256)",
    """CREATE TABLE suspect(
        sha256 TEXT PRIMARY KEY,    -- of a delivery that was in hand when the process fell
        times INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    *_ENROLLMENT,
    *_COMMANDS,
    *_ROLLOUTS,
)

MIGRATIONS = {  # from a version to the next one
    1: ("ALTER TABLE task ADD COLUMN better TEXT NOT NULL DEFAULT 'higher'",),
    2: ("CREATE INDEX IF NOT EXISTS release_by_sha256 ON release(sha256)",),  # and `memory` has a third part
    3: ("ALTER TABLE release ADD COLUMN state TEXT NOT NULL DEFAULT 'released'",),
    4: _ENROLLMENT,
    5: _COMMANDS,
    6: _ROLLOUTS,
}
