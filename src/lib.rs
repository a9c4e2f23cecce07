//! Counterbat counts Viber bot billing sessions.
//!
//! ```text
//!  bot / Viber ─► gateway ─► log ─► projector ─► lake ─► query ─► console (SQL, /metrics), postgres, CLI
//!                             │        │  ├ session (pure fold)        ▲
//!                             │        │  └ state ── overlay ──────────┘
//!                             └► import / export, rebuild
//! ```
//!
//! Data flows one way. Read the modules in that order.
//!
//! | module | owns | may import |
//! |---|---|---|
//! | [`durable_file`] | small JSON files, written whole and durably | nothing of ours |
//! | [`database_dir`] | directories of databases that were being made when the process was killed | nothing of ours |
//! | [`event`] | what a record is and what it says: envelope, codecs, facts, identity; pure | nothing of ours |
//! | [`session`] | facts of a user → sessions, messages, verdicts, costs, settlement; policies and prices; pure | `event` |
//! | [`log`] | the append-only log of events: [`log::EventLog`], partitioner, embedded log, Kafka; [`log::registry::Registry`], what its processes tell each other; the spill beside it | `event`, `database_dir` |
//! | [`config`] | settings: commented defaults, strict load | `event`, `session` |
//! | [`metrics`] | instruments with verb methods | `event`, `session` |
//! | [`gateway`] | Viber's callbacks and the bots' calls: verify, append, relay; accounts and webhooks | `event`, `log`, `metrics`, `durable_file` |
//! | [`state`] | what the fold remembers, on disk, with the positions it reflects | `session`, `event`, `log`, `database_dir` |
//! | [`lake`] | Delta tables: schemas, Parquet files, commits with positions, buckets | `session`, `event`, `log` |
//! | [`projector`] | read → fold → archive → state → tables; recovery; rebuild | `log`, `session`, `state`, `lake`, `metrics`, `durable_file` |
//! | [`query`] | SQL over tables and overlay, views, limits, read-only guard | `lake`, `projector` (its handle) |
//! | [`explain`] | what became of a user's events and why, step by step; pure | `event`, `session` |
//! | [`transfer`] | import and export of event files | `event`, `log` |
//! | [`sandbox`] | a Viber double with real rules, and traffic | nothing of ours |
//! | [`console`] | the second listener and who may ask it: SQL over HTTP, accounts, redelivery, users and their sessions, `/metrics`, health | `query`, `explain`, `transfer`, `metrics`, `gateway`, `config` |
//! | [`postgres`] | the third listener: SQL for clients of PostgreSQL | `query`, `console` (its tokens), `gateway` (its TLS), `config` |
//! | [`cluster`] | the processes that share a log: what others have folded, laid over the tables that a query reads | `log`, `lake`, `projector`, `query`, `console` (what it tells), `metrics` |
//! | [`app`] | builds the parts that a process's roles need, starts them, stops them in order | everything |
//! | [`cli`] | flags, exit codes, progress bars, table output | everything |
//!
//! What holds everywhere:
//! - An acknowledged event is durable before its answer leaves.
//! - `event` and `session` know no clock, file, thread or randomness: the same events give the same rows.
//! - A log position is stored in the same commit as the data it stands for, and `events` is never behind the state.

pub mod app;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod console;
pub mod database_dir;
pub mod durable_file;
pub mod event;
pub mod explain;
pub mod gateway;
pub mod lake;
pub mod log;
pub mod metrics;
pub mod postgres;
pub mod projector;
pub mod query;
pub mod sandbox;
pub mod session;
pub mod state;
pub mod transfer;
