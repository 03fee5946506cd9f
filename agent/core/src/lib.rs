//! Decides, never acts: no file system, network, environment, threads or clock in here.

pub mod model;
pub mod recipe;
pub mod ring;
pub mod scan;
pub mod source;
pub mod tier;
