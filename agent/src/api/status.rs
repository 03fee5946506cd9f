//! The one place of the gRPC link where errors become codes. A status carries a prost-encoded `ErrorInfo` in its details.

use prost::Message;
use sigil_protocol::v1::ErrorInfo;
use tonic::{Code, Status};

use crate::access::AccessError;
use crate::audit::AuditError;
use crate::gateway::GatewayError;
use crate::operate::Failure;
use crate::registry::RegistryError;
use crate::secrets::SecretError;
use crate::source::SourceError;
use crate::source::forge::ForgeError;
use crate::store::StoreError;
use crate::tail::TailError;

/// A status travels in HTTP/2 trailers, of which clients take 16 KiB: parts are cut to fit.
const MESSAGE_MAX: usize = 2048;
const HINT_MAX: usize = 1024;
const DETAILS_MAX: usize = 4096;

/// Wrong use or bad input (cli.md's exit codes).
pub(super) const USAGE: i32 = 2;
pub(super) const NOT_FOUND: i32 = 3;
pub(super) const FORBIDDEN: i32 = 4;

fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// The gRPC code that fits an `ErrorInfo`.
fn code_of(info: &ErrorInfo) -> Code {
    match info.code.as_str() {
        "NAME_TAKEN" => return Code::AlreadyExists,
        "CONFLICT" => return Code::Aborted,
        "DISK_FULL" | "TOO_MANY" => return Code::ResourceExhausted,
        "CANCELLED" => return Code::Cancelled,
        "UNAUTHENTICATED" => return Code::Unauthenticated,
        "INTERNAL" => return Code::Internal,
        _ => {}
    }
    match info.exit_code {
        2 => Code::InvalidArgument,
        3 => Code::NotFound,
        4 => Code::PermissionDenied,
        5 => Code::Unavailable,
        6 => Code::FailedPrecondition,
        7 => Code::DeadlineExceeded,
        130 => Code::Cancelled,
        _ => Code::Unknown,
    }
}

/// A status from what is to be told.
pub fn status(mut info: ErrorInfo) -> Status {
    info.message = cut(&info.message, MESSAGE_MAX);
    info.hint = cut(&info.hint, HINT_MAX);
    if info.details.len() > DETAILS_MAX {
        // half a JSON text is none; operations carry the whole in their record
        info.details = String::new();
    }
    // grpc-message is percent-encoded (up to three times as long): details has the whole text
    Status::with_details(code_of(&info), cut(&info.message, 512), info.encode_to_vec().into())
}

/// A status in one line.
pub(super) fn refuse(code: &str, message: impl Into<String>, hint: impl Into<String>, exit_code: i32) -> Status {
    status(ErrorInfo {
        code: code.into(),
        message: message.into(),
        hint: hint.into(),
        details: String::new(),
        exit_code,
    })
}

pub(super) fn invalid(message: impl Into<String>, hint: impl Into<String>) -> Status {
    refuse("INVALID", message, hint, USAGE)
}

pub(super) fn no_deployment(name: &str) -> Status {
    refuse("NOT_FOUND", format!("no deployment '{name}'"), "`sigil ls` lists what there is", NOT_FOUND)
}

pub(super) fn no_operation(id: &str) -> Status {
    refuse("NOT_FOUND", format!("no operation '{id}'"), "`sigil ops` lists the kept ones", NOT_FOUND)
}

pub(super) fn stopping() -> Status {
    refuse("STOPPING", "the agent is stopping", "connect again when it is back", 5)
}

/// What is told of a failure.
pub fn failure(f: &Failure) -> Status {
    status(ErrorInfo {
        code: f.code.clone(),
        message: f.message.clone(),
        hint: f.hint.clone(),
        details: f.details.clone(),
        exit_code: f.exit_code,
    })
}

pub(super) fn store(e: &StoreError) -> Status {
    let (code, exit) = match e {
        StoreError::Locked(_) => ("LOCKED", 1),
        StoreError::NotFound(_) => ("NOT_FOUND", NOT_FOUND),
        StoreError::NameTaken(_) => ("NAME_TAKEN", USAGE),
        StoreError::Conflict { .. } => ("CONFLICT", 1),
        StoreError::DiskFull => ("DISK_FULL", 1),
        StoreError::Newer { .. } | StoreError::Io(_) => ("INTERNAL", 1),
        StoreError::Closed => ("STOPPING", 5),
        StoreError::Refused(_) => ("INVALID", USAGE),
    };
    refuse(code, e.to_string(), e.hint(), exit)
}

pub(super) fn secret(e: &SecretError) -> Status {
    let (code, exit) = match e {
        SecretError::Store(e) => return store(e),
        SecretError::BadName(_) | SecretError::BadHost(_) | SecretError::BadValue(..) | SecretError::Mistyped(_) => {
            ("INVALID", USAGE)
        }
        SecretError::Missing(_) => ("MISSING_SECRET", USAGE),
        SecretError::Keyring(_) | SecretError::Broken(_) => ("INTERNAL", 1),
        SecretError::Audit(e) => return audit(e),
    };
    refuse(code, e.to_string(), e.hint(), exit)
}

/// What cannot be recorded is not done.
pub(super) fn audit(e: &AuditError) -> Status {
    let (code, exit) = match e {
        AuditError::Full => ("DISK_FULL", 1),
        AuditError::Io(_) => ("INTERNAL", 1),
        AuditError::Closed => ("STOPPING", 5),
    };
    refuse(code, e.to_string(), e.hint(), exit)
}

/// It was done, or refused, and the record of how it went cannot be written now: that it was tried is on the disk.
pub(super) fn unrecorded(e: &AuditError) -> Status {
    let message = format!("it was tried, but how it went cannot be recorded: {e}");
    refuse(
        "INTERNAL",
        message,
        "look whether it was done; that it was tried is kept, and recorded when that is possible",
        1,
    )
}

pub(super) fn source(e: &SourceError) -> Status {
    let (code, exit) = match e {
        SourceError::NotFound { .. } => ("NOT_FOUND", NOT_FOUND),
        SourceError::Refused { .. } => ("INVALID", USAGE),
        SourceError::Failed { .. } => ("SOURCE_FAILED", 1),
        SourceError::Cancelled => ("CANCELLED", 130),
    };
    refuse(code, e.to_string(), e.hint(), exit)
}

pub(super) fn forge(e: &ForgeError) -> Status {
    let (code, exit) = match e {
        ForgeError::NoAccount(_) | ForgeError::NoneFits(_) | ForgeError::NotFound(..) => ("NOT_FOUND", NOT_FOUND),
        ForgeError::Bad(_) | ForgeError::Key(..) | ForgeError::TooMany => ("INVALID", USAGE),
        ForgeError::Taken(_) => ("NAME_TAKEN", USAGE),
        ForgeError::Refused { .. } | ForgeError::Forbidden { .. } => ("GIT_REFUSED", 1),
        ForgeError::Limited { .. } => ("GIT_LIMITED", 1),
        ForgeError::Unreachable { .. } | ForgeError::Strange { .. } | ForgeError::Client(..) => ("GIT_FAILED", 1),
        ForgeError::Vault(..) => ("INTERNAL", 1),
    };
    refuse(code, e.to_string(), e.hint(), exit)
}

pub(super) fn tail(e: &TailError) -> Status {
    let (code, exit) = match e {
        TailError::BadPattern { .. } | TailError::TooMany(_) => ("INVALID", USAGE),
        TailError::Io(_) => ("INTERNAL", 1),
    };
    refuse(code, e.to_string(), e.hint(), exit)
}

pub(super) fn gateway(e: &GatewayError) -> Status {
    match e {
        GatewayError::NotFound(name) => no_deployment(name),
        _ => refuse(e.code(), e.to_string(), e.hint(), 1),
    }
}

pub(super) fn registry(e: &RegistryError) -> Status {
    let exit = match e {
        RegistryError::NotFound(_) | RegistryError::NoVersion(..) => NOT_FOUND,
        RegistryError::Mirrored(..) | RegistryError::Forbidden(_) => FORBIDDEN,
        RegistryError::Invalid(_) | RegistryError::Exists(..) | RegistryError::Bad(_) => USAGE,
        RegistryError::Unchanged(..) | RegistryError::Broken(_) => 1,
        RegistryError::Stopping => return stopping(),
        RegistryError::Store(e) => return store(e),
    };
    refuse(e.code(), e.to_string(), e.hint(), exit)
}

pub(super) fn access(e: &AccessError) -> Status {
    match e {
        AccessError::NoToken | AccessError::BadToken => refuse("UNAUTHENTICATED", e.to_string(), e.hint(), FORBIDDEN),
        AccessError::Stranger(_) | AccessError::Disabled(_) | AccessError::NobodysCertificate(_) => {
            refuse("FORBIDDEN", e.to_string(), e.hint(), FORBIDDEN)
        }
        // a file that cannot be read lets nobody in, and its path is not told to strangers
        _ => {
            tracing::error!(error = %e, "tokens cannot be read");
            refuse("UNAUTHENTICATED", "tokens cannot be read", "look at the agent's log", FORBIDDEN)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_what_the_console_prints() {
        let s = store(&StoreError::NameTaken("a".into()));
        assert_eq!(s.code(), Code::AlreadyExists);
        let info = ErrorInfo::decode(s.details()).unwrap();
        assert_eq!(
            (info.code.as_str(), info.message.as_str(), info.exit_code),
            ("NAME_TAKEN", "the name 'a' is taken", 2)
        );
        assert!(!info.hint.is_empty());
        for (exit, code) in [
            (1, Code::Unknown),
            (2, Code::InvalidArgument),
            (3, Code::NotFound),
            (4, Code::PermissionDenied),
            (5, Code::Unavailable),
            (6, Code::FailedPrecondition),
            (7, Code::DeadlineExceeded),
        ] {
            assert_eq!(refuse("X", "m", "h", exit).code(), code);
        }
    }

    #[test]
    fn long_parts_are_cut_so_that_trailers_fit() {
        let s = status(ErrorInfo {
            code: "X".into(),
            message: "é".repeat(5000),
            hint: "h".repeat(9000),
            details: "{".repeat(9000),
            exit_code: 1,
        });
        let info = ErrorInfo::decode(s.details()).unwrap();
        assert!(info.message.ends_with('…') && info.message.len() <= MESSAGE_MAX);
        assert_eq!(info.details, "");
        assert!(s.details().len() * 4 / 3 + s.message().len() * 3 < 8192);
    }
}
