//! Decides, never acts: no file system, network, environment, threads or clock in here.

pub mod answers;
pub mod audit;
pub mod cgroup;
pub mod cost;
pub mod egress;
pub mod exposition;
pub mod gate;
pub mod jsonrpc;
pub mod mirror;
pub mod model;
pub mod pins;
pub mod plan;
pub mod policy;
pub mod recipe;
pub mod rights;
pub mod ring;
pub mod route;
pub mod sbom;
pub mod scan;
pub mod series;
pub mod session;
pub mod source;
pub mod tier;
pub mod trace;
