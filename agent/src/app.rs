//! The only file that knows every room. Wiring, no logic.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sigil_config::agent::AgentConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{self, ApiDeps};
use crate::build::Builds;
use crate::engine::{Engine, docker::Docker};
use crate::gateway::Gateway;
use crate::initlink::InitLinks;
use crate::operate::{self, Operate};
use crate::reconcile::{self, Reconcile};
use crate::secrets::Secrets;
use crate::source::Sources;
use crate::store::Store;
use crate::tail::Tail;
use crate::upstream::RouteTable;
