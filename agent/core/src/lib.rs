//! Decides, never acts: no file system, network, environment, threads or clock in here.

pub mod jsonrpc;
pub mod model;
pub mod recipe;
pub mod route;
pub mod session;
pub mod source;
