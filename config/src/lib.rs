//! What a person may write down: the agent's and the console's configuration, and manifests.

pub mod agent;
pub mod manifest;
