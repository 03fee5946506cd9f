//! What a source is and how its image is made: recognition, and the Dockerfile.

use std::collections::BTreeMap;
use serde::{Deserialize, Serialize};
use sigil_config::manifest::{Manifest, Runtime};

/// A source tree as data: paths relative to its root with '/', sorted; bodies of the files that recognition reads.
#[derive(Debug, Clone, Default)]
pub struct Tree { pub files: Vec<String>, pub bodies: BTreeMap<String, Vec<u8>> }
impl Tree {
    /// Whether recognition wants to read this file's body (root manifests, lock files' presence is enough).
    pub fn wanted(_path: &str) -> bool { todo!() }
}

/// Where the code comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin { Tree, Npm { name: String, version: String }, Pypi { name: String, version: String }, Image }

/// How to make and run the image: manifest and recognition merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    pub origin: Origin,
    pub runtime: Runtime,
    /// What was recognised and why, one line each.
    pub why: Vec<String>,
    /// The merged manifest (paths checked to stay in the tree).
    pub manifest: Manifest,
    /// Empty until the image says (Dockerfile builds without a command).
    pub command: Vec<String>,
    /// `http`, `sse`, `stdio`; None: unknown, find out at the gate by asking.
    pub transport: Option<String>,
    pub port: u16,
    pub path: String,
    /// A Dockerfile of the tree, relative to it; None: generated.
    pub dockerfile: Option<String>,
    /// Build context within the tree.
    pub context: String,
}

/// Settings of the agent that shape a Dockerfile.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BuildSettings { pub base_image: String, pub npm_registry: String, pub pypi_index: String, pub go_proxy: String, pub cargo_registry: String, pub apt_mirror: String, pub extra_ca: bool, pub args: BTreeMap<String, String> }

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecipeError {
    #[error("nothing here is known as an MCP server")]
    Unrecognised { looked_for: Vec<String> },
    /// All flaws at once, each `file:line:column: what`.
    #[error("{}", .0.join("\n"))]
    Manifest(Vec<String>),
    #[error("{what} leaves the source tree: {path}")]
    Escapes { what: String, path: String },
}
/// Recognises a tree. `given` is a manifest handed in beside it (name, text).
pub fn recognise(_tree: &Tree, _origin: Origin, _given: Option<(&str, &str)>) -> Result<Recipe, RecipeError> { todo!() }
/// The Dockerfile for a recipe without one of its own.
pub fn dockerfile(_recipe: &Recipe, _tree: &Tree, _settings: &BuildSettings) -> String { todo!() }
