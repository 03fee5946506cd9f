//! The daemon that hosts MCP servers on its machine. The binary is a thin shell around this library, so that
//! `tests` can run a whole agent in process.

pub mod access;
pub mod alert;
pub mod api;
pub mod app;
pub mod audit;
pub mod autoscale;
pub mod build;
pub mod engine;
pub mod follow;
pub mod gateway;
pub mod initlink;
pub mod inspect;
mod kept;
mod lines;
pub mod operate;
pub mod probe;
pub mod reconcile;
pub mod registry;
pub mod sample;
pub mod secrets;
pub mod source;
pub mod store;
pub mod tail;
pub mod telemetry;
pub mod upstream;
pub mod usage;
pub mod web;
