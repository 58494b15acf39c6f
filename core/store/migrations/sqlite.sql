CREATE TABLE alembic_version (
version_num VARCHAR(32) NOT NULL,
CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE usage_events (
request_id TEXT NOT NULL,
time_ms BIGINT NOT NULL,
endpoint TEXT NOT NULL,
status INTEGER NOT NULL,
instance TEXT NOT NULL,
litellm_call_id TEXT,
key_hash TEXT,
key_alias TEXT,
user_id TEXT,
team_id TEXT,
groups TEXT NOT NULL,
tier TEXT,
task_type TEXT,
priority BIGINT,
session_id TEXT,
asked_model TEXT,
used_model TEXT,
deployment TEXT,
provider TEXT,
provider_model TEXT,
variant TEXT,
input_tokens BIGINT NOT NULL,
output_tokens BIGINT NOT NULL,
cached_tokens BIGINT NOT NULL,
reasoning_tokens BIGINT NOT NULL,
usage TEXT NOT NULL,
cost_nano BIGINT NOT NULL,
unknown_nano BIGINT NOT NULL,
price_version TEXT,
cache TEXT,
fallbacks INTEGER NOT NULL,
error_class TEXT,
latency_ms BIGINT NOT NULL,
first_token_ms BIGINT,
streamed BOOLEAN NOT NULL,
degraded BOOLEAN NOT NULL,
disconnected BOOLEAN NOT NULL, clamped BIGINT, policy TEXT, route TEXT, traits TEXT, settings TEXT,
PRIMARY KEY (request_id)
);

CREATE TABLE usage_attempts (
request_id TEXT NOT NULL,
number INTEGER NOT NULL,
model TEXT NOT NULL,
deployment TEXT,
provider TEXT,
provider_model TEXT,
started_ms BIGINT NOT NULL,
latency_ms BIGINT NOT NULL,
status INTEGER NOT NULL,
error_class TEXT,
usage TEXT NOT NULL,
input_tokens BIGINT NOT NULL,
output_tokens BIGINT NOT NULL,
cost_nano BIGINT NOT NULL, accounts TEXT, reserved_nano BIGINT DEFAULT '0' NOT NULL,
PRIMARY KEY (request_id, number)
)
WITHOUT ROWID;

CREATE TABLE usage_amendments (
request_id TEXT NOT NULL,
amendment TEXT NOT NULL, since_ms BIGINT DEFAULT '0' NOT NULL,
PRIMARY KEY (request_id, amendment)
)
WITHOUT ROWID;

CREATE INDEX usage_events_time ON usage_events (time_ms);

CREATE TABLE instances (
instance TEXT NOT NULL,
host TEXT NOT NULL,
pid INTEGER NOT NULL,
started_ms BIGINT NOT NULL,
seen_ms BIGINT NOT NULL,
version TEXT NOT NULL,
config_digest TEXT NOT NULL,
config_version INTEGER NOT NULL,
PRIMARY KEY (instance)
);

CREATE TABLE audit_records (
chain TEXT NOT NULL,
seq BIGINT NOT NULL,
id TEXT NOT NULL,
time_ms BIGINT NOT NULL,
actor TEXT NOT NULL,
action TEXT NOT NULL,
subject TEXT NOT NULL,
version TEXT,
reason TEXT,
outcome TEXT NOT NULL,
detail TEXT NOT NULL,
previous_hash TEXT NOT NULL,
hash TEXT NOT NULL,
PRIMARY KEY (chain, seq)
);

CREATE UNIQUE INDEX audit_records_id ON audit_records (id);

CREATE INDEX audit_records_time ON audit_records (time_ms, chain, seq);

CREATE TRIGGER audit_records_no_update BEFORE UPDATE ON audit_records BEGIN SELECT RAISE(ABORT, 'audit records are never changed or deleted'); END;

CREATE TRIGGER audit_records_no_delete BEFORE DELETE ON audit_records BEGIN SELECT RAISE(ABORT, 'audit records are never changed or deleted'); END;

CREATE TABLE budget_spend (
budget TEXT NOT NULL,
start_ms BIGINT NOT NULL,
member TEXT NOT NULL,
spent_nano BIGINT NOT NULL,
base_nano BIGINT NOT NULL,
extra_nano BIGINT NOT NULL,
version BIGINT NOT NULL,
PRIMARY KEY (budget, start_ms, member)
)
WITHOUT ROWID;

CREATE TABLE budget_adjustments (
id TEXT NOT NULL,
budget TEXT NOT NULL,
start_ms BIGINT NOT NULL,
member TEXT NOT NULL,
kind TEXT NOT NULL,
amount_nano BIGINT NOT NULL,
reason TEXT NOT NULL,
actor TEXT NOT NULL,
time_ms BIGINT NOT NULL,
PRIMARY KEY (id)
);

CREATE INDEX budget_adjustments_account ON budget_adjustments (budget, start_ms, member);

CREATE TABLE budget_pauses (
budget_id TEXT NOT NULL,
since_ms BIGINT NOT NULL,
actor TEXT NOT NULL,
reason TEXT NOT NULL,
PRIMARY KEY (budget_id)
);

CREATE TABLE budget_backfills (
budget TEXT NOT NULL,
start_ms BIGINT NOT NULL,
done_ms BIGINT NOT NULL,
PRIMARY KEY (budget, start_ms)
)
WITHOUT ROWID;

CREATE TABLE alerts (
id TEXT NOT NULL,
seq BIGINT NOT NULL,
dedupe_key TEXT NOT NULL,
alert TEXT NOT NULL,
times BIGINT NOT NULL,
over_ms BIGINT,
PRIMARY KEY (id)
);

CREATE UNIQUE INDEX alerts_key ON alerts (dedupe_key);

CREATE UNIQUE INDEX alerts_seq ON alerts (seq);

CREATE INDEX alerts_over ON alerts (over_ms);

CREATE TABLE alert_deliveries (
alert_id TEXT NOT NULL,
channel TEXT NOT NULL,
seq BIGINT NOT NULL,
subject TEXT NOT NULL,
state TEXT NOT NULL,
attempts INTEGER NOT NULL,
next_ms BIGINT NOT NULL,
claimed_by TEXT,
claimed_until_ms BIGINT NOT NULL,
last_error TEXT,
PRIMARY KEY (alert_id, channel)
);

CREATE INDEX alert_deliveries_state ON alert_deliveries (state, next_ms);

CREATE INDEX alert_deliveries_order ON alert_deliveries (channel, subject, seq, state);

CREATE TABLE alert_floods (
dedupe_key TEXT NOT NULL,
alert TEXT NOT NULL,
channels TEXT NOT NULL,
times BIGINT NOT NULL,
until_ms BIGINT NOT NULL,
PRIMARY KEY (dedupe_key)
);

CREATE TABLE overlay_versions (
version BIGINT NOT NULL,
time_ms BIGINT NOT NULL,
actor TEXT NOT NULL,
change TEXT NOT NULL,
overlay TEXT,
PRIMARY KEY (version)
);

CREATE TABLE batch_files (
id TEXT NOT NULL,
purpose TEXT NOT NULL,
key_hash TEXT,
user_id TEXT,
team_id TEXT,
model TEXT NOT NULL,
provider_model TEXT NOT NULL,
endpoint TEXT NOT NULL,
lines BIGINT NOT NULL,
input_tokens BIGINT NOT NULL,
bound_nano BIGINT NOT NULL,
unbounded TEXT,
prices TEXT NOT NULL,
created_ms BIGINT NOT NULL,
PRIMARY KEY (id)
);

CREATE TABLE batch_jobs (
id TEXT NOT NULL,
kind TEXT NOT NULL,
request_id TEXT NOT NULL,
key_hash TEXT,
user_id TEXT,
team_id TEXT,
model TEXT NOT NULL,
deployment TEXT,
provider_model TEXT NOT NULL,
endpoint TEXT NOT NULL,
input_file TEXT,
reserved_nano BIGINT NOT NULL,
status TEXT NOT NULL,
created_ms BIGINT NOT NULL,
next_ms BIGINT NOT NULL,
claimed_until_ms BIGINT NOT NULL,
done_ms BIGINT,
PRIMARY KEY (id)
);

CREATE INDEX batch_jobs_next ON batch_jobs (done_ms, next_ms);

CREATE TABLE usage_assignments (
experiment TEXT NOT NULL,
request_id TEXT NOT NULL,
variant TEXT NOT NULL,
unit TEXT NOT NULL,
time_ms BIGINT NOT NULL,
PRIMARY KEY (experiment, request_id)
)
WITHOUT ROWID;

CREATE INDEX usage_assignments_time ON usage_assignments (experiment, time_ms);

CREATE TABLE feedback (
request_id TEXT NOT NULL,
metric TEXT NOT NULL,
value DOUBLE NOT NULL,
time_ms BIGINT NOT NULL,
updated_ms BIGINT NOT NULL,
key_hash TEXT,
PRIMARY KEY (request_id, metric)
)
WITHOUT ROWID;

CREATE TABLE feedback_waiting (
request_id TEXT NOT NULL,
metric TEXT NOT NULL,
giver TEXT NOT NULL,
value DOUBLE NOT NULL,
time_ms BIGINT NOT NULL,
key_hash TEXT,
user_id TEXT,
any_request BOOLEAN NOT NULL,
PRIMARY KEY (request_id, metric, giver)
)
WITHOUT ROWID;

CREATE INDEX feedback_waiting_giver ON feedback_waiting (giver);

CREATE TABLE settings_versions (
digest TEXT NOT NULL,
first_ms BIGINT NOT NULL,
document TEXT NOT NULL,
PRIMARY KEY (digest)
);

CREATE TABLE experiment_ranges (
experiment TEXT NOT NULL,
version BIGINT NOT NULL,
seed TEXT NOT NULL,
ranges TEXT NOT NULL,
time_ms BIGINT NOT NULL,
PRIMARY KEY (experiment, version)
)
WITHOUT ROWID;

CREATE TABLE experiment_closures (
experiment TEXT NOT NULL,
variant TEXT NOT NULL,
reason TEXT NOT NULL,
time_ms BIGINT NOT NULL,
reopened_ms BIGINT,
PRIMARY KEY (experiment, variant)
)
WITHOUT ROWID;
