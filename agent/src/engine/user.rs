//! Who a container runs as: `USER` words made numbers, and never root.

use super::{EngineError, Result};

/// `uid:gid` when both are (or imply) numbers; `None` when a name has to be looked up.
///
/// # Errors
/// `Failed` for root and for an empty user.
pub(super) fn numeric(user: &str) -> Result<Option<String>> {
    lookup_free(user)?.map_or(Ok(None), |(uid, gid)| checked(user, uid, gid).map(Some))
}

/// Looks names up in the image's own files.
///
/// # Errors
/// `Failed` when a name is not there, or is root's.
pub(super) fn named(user: &str, passwd: &str, group: &str) -> Result<String> {
    let unknown = |what: &str| EngineError::Failed(format!("user '{user}': the image knows no {what}"));
    let (name, group_name) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let (uid, own_gid) = match name.parse::<u32>() {
        Ok(uid) => (uid, None),
        Err(_) => {
            let line = entry(passwd, name).ok_or_else(|| unknown(&format!("user '{name}'")))?;
            let id = |at: usize| line.get(at).and_then(|field| field.parse::<u32>().ok());
            (id(2).ok_or_else(|| unknown("number for it"))?, id(3))
        }
    };
    let gid = match group_name.map(|name| (name, name.parse::<u32>())) {
        None => own_gid.unwrap_or(uid),
        Some((_, Ok(gid))) => gid,
        Some((name, Err(_))) => {
            let line = entry(group, name).ok_or_else(|| unknown(&format!("group '{name}'")))?;
            line.get(2).and_then(|field| field.parse().ok()).ok_or_else(|| unknown("number for its group"))?
        }
    };
    checked(user, uid, gid)
}

fn entry<'a>(file: &'a str, name: &str) -> Option<Vec<&'a str>> {
    file.lines().map(|line| line.trim().split(':').collect::<Vec<_>>()).find(|fields| fields.first() == Some(&name))
}

fn lookup_free(user: &str) -> Result<Option<(u32, u32)>> {
    if user.is_empty() {
        return Err(EngineError::Failed("no user is given, and root is refused".into()));
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (uid, gid) = user.split_once(':').unwrap_or((user, user));
    if !digits(uid) || !digits(gid) {
        return Ok(None);
    }
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) => Ok(Some((uid, gid))),
        _ => Err(EngineError::Failed(format!("user '{user}' is out of range"))),
    }
}

fn checked(user: &str, uid: u32, gid: u32) -> Result<String> {
    if uid == 0 { Err(EngineError::Failed(format!("user '{user}' is root"))) } else { Ok(format!("{uid}:{gid}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001::/home/node:/bin/sh\ntoor:x:0:5::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:node\n";

    #[test]
    fn numbers_stand_for_themselves() {
        assert_eq!(numeric("1000").unwrap().as_deref(), Some("1000:1000"));
        assert_eq!(numeric("1000:0").unwrap().as_deref(), Some("1000:0"));
        assert_eq!(numeric("node").unwrap(), None);
        for bad in ["0", "0:0", "0:1000", "", "99999999999"] {
            assert!(numeric(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_the_images() {
        assert_eq!(named("node", PASSWD, GROUP).unwrap(), "1000:1001");
        assert_eq!(named("node:staff", PASSWD, GROUP).unwrap(), "1000:50");
        assert_eq!(named("7:staff", PASSWD, GROUP).unwrap(), "7:50");
        for bad in ["root", "toor", "nobody", "node:none", "0:staff"] {
            assert!(named(bad, PASSWD, GROUP).is_err(), "{bad}");
        }
    }
}
