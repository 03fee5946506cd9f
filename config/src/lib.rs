//! What a person may write down: the agent's and the console's configuration, and manifests.
//!
//! Every format is read into one tree of values with positions ([`node`]), so that all flaws of a file are named at
//! once with line and column, whatever the format.

pub mod agent;
pub mod client;
pub mod console;
pub mod egress;
pub mod flaw;
pub mod folders;
pub mod foreign;
pub mod manifest;
pub mod node;
pub mod reload;
pub mod rules;
pub mod server_json;
pub mod size;
pub mod smithery;
