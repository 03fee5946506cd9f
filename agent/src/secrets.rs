//! Owns: secret plaintext and the keyring. May touch: the store's sealed records, `<data>/keyring`. Never: logs a value. Tested by: unit tests.
use secrecy::SecretString;
use crate::store::Store;
use sigil_core::model::{DeploymentId, ReleaseSpec};

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("secret: {0}")]
    Keyring(String),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error("the record of '{0}' does not open with this keyring")]
    Broken(String),
    #[error("'{0}' is not a valid environment variable name")]
    BadName(String),
    #[error("missing secrets: {}", .0.join(", "))]
    Missing(Vec<String>),
}
pub type Result<T> = std::result::Result<T, SecretError>;

/// Whose a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope { Team(String), Deployment(DeploymentId), Source }
/// A login for fetching sources from a host.
#[derive(Debug, Clone)]
pub struct Credential { pub host: String, pub username: String, pub password: SecretString }
/// What is shown of a secret.
#[derive(Debug, Clone)]
pub struct SecretMeta { pub name: String, pub scope: Scope, pub version: u32, pub changed_at: jiff::Timestamp, pub changed_by: String }

#[derive(Clone, Debug)]
pub struct Secrets {}
impl Secrets {
    pub fn open(_data_dir: &std::path::Path, _store: Store) -> Result<Self> { todo!() }
    pub async fn set(&self, _scope: &Scope, _name: &str, _value: SecretString, _username: &str, _who: &str) -> Result<SecretMeta> { todo!() }
    pub fn list(&self) -> Vec<SecretMeta> { todo!() }
    pub async fn remove(&self, _scope: &Scope, _name: &str) -> Result<bool> { todo!() }
    pub fn get(&self, _scope: &Scope, _name: &str) -> Result<Option<SecretString>> { todo!() }
    /// Names that a release requires and that are nowhere.
    pub fn missing(&self, _id: Option<DeploymentId>, _team: &str, _spec: &ReleaseSpec) -> Vec<String> { todo!() }
    /// Environment secrets of a release: (variable, value), looked up in the deployment, then its team.
    pub fn environment(&self, _id: DeploymentId, _team: &str, _spec: &ReleaseSpec) -> Result<Vec<(String, SecretString)>> { todo!() }
    /// Header, query and body secrets of a release.
    pub fn injected(&self, _id: DeploymentId, _team: &str, _spec: &ReleaseSpec) -> Result<Vec<(sigil_core::model::Inject, SecretString)>> { todo!() }
    /// Login for a host (longest matching suffix of the host name).
    pub fn credential(&self, _host: &str) -> Result<Option<Credential>> { todo!() }
}
