//! Stories on a simulated host: the whole agent in this process, on the fake engine, whose containers really connect to
//! the agent's sockets as an init does, and really speak MCP. Nothing here needs an engine, a network or a second.

/// As in the daemon: what is measured of its memory is what it ships with.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[path = "sim/container.rs"]
mod container;
#[path = "sim/crash.rs"]
mod crash;
#[path = "sim/drift.rs"]
mod drift;
#[path = "sim/faults.rs"]
mod faults;
#[path = "sim/health.rs"]
mod health;
#[path = "sim/scale.rs"]
mod scale;
#[path = "sim/server.rs"]
mod server;
#[path = "sim/sleep.rs"]
mod sleep;
#[path = "sim/stories.rs"]
mod stories;
#[path = "sim/world.rs"]
mod world;
