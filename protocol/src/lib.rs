//! The gRPC contract between `sigil` and `sigil-agent`, and nothing of ours.
//!
//! Generated from `proto/sigil/v1/sigil.proto`. Wire types stop at the console's link and the agent's api room.

/// Version 1 of the contract. It only grows.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, rustdoc::invalid_html_tags, rustdoc::broken_intra_doc_links)]
pub mod v1 {
    tonic::include_proto!("sigil.v1");
}

/// The compiled descriptor set, for the test that the contract only grows.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
