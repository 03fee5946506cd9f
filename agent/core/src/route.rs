//! Which replica takes a new session or a stateless call, and which names a caller may use for this host.

/// What a replica carries now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Burden {
    /// Requests without an answer yet.
    pub in_flight: u64,
    /// Open sessions.
    pub sessions: u64,
}

/// The replica with the least to do; among equals the one after `turn`, so that idle replicas take turns. `None` when
/// there is none. `sessions_first`: sessions weigh more than requests (a session stays, a request passes).
pub fn choose(replicas: &[Burden], turn: usize, sessions_first: bool) -> Option<usize> {
    let count = replicas.len();
    (0..count).map(|step| (turn.wrapping_add(step)) % count).min_by_key(|index| {
        let burden = replicas[*index];
        if sessions_first { (burden.sessions, burden.in_flight) } else { (burden.in_flight, burden.sessions) }
    })
}

/// Most sessions of a stdio replica when the manifest does not say: as many as its `memory` holds beside 32 MiB for
/// init and caches, at 1.3 times what the `first` process needed (both bytes), within its process limit (16 processes
/// and threads for one server). At least one; 16 at most while the first process was not measured.
pub fn sessions_default(processes: u32, memory: u64, first: Option<u64>) -> u32 {
    let by_processes = (processes / 16).max(1);
    let by_memory = first.filter(|bytes| *bytes > 0).map_or(16, |bytes| {
        let each = bytes.saturating_mul(13) / 10;
        u32::try_from(memory.saturating_sub(32 << 20) / each.max(1)).unwrap_or(u32::MAX)
    });
    by_processes.min(by_memory).max(1)
}

/// The host of a `Host` or `Origin` authority, without port and brackets, in lower case.
pub fn host_of(authority: &str) -> String {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host.to_ascii_lowercase()
}

/// Whether a host name means this machine's loopback.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host == "::1"
        || host.strip_prefix("127.").is_some_and(|rest| {
            let parts: Vec<&str> = rest.split('.').collect();
            parts.len() == 3 && parts.iter().all(|p| p.parse::<u8>().is_ok())
        })
}

/// Whether a browser's `Origin` may call: a loopback one, or one of `allowed` (compared without case and without a
/// final slash). `null` never may.
pub fn origin_allowed(origin: &str, allowed: &[String]) -> bool {
    let origin = origin.trim_end_matches('/');
    if allowed.iter().any(|a| a.trim_end_matches('/').eq_ignore_ascii_case(origin)) {
        return true;
    }
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") && is_loopback(&host_of(authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_burdened_and_turns() {
        let idle = [Burden::default(); 3];
        assert_eq!((0..4).map(|t| choose(&idle, t, true).unwrap()).collect::<Vec<_>>(), [0, 1, 2, 0]);
        let busy = [Burden { in_flight: 0, sessions: 2 }, Burden { in_flight: 1, sessions: 1 }];
        assert_eq!(choose(&busy, 0, true), Some(1));
        assert_eq!(choose(&busy, 1, false), Some(0));
        assert_eq!(choose(&[], 5, false), None);
    }

    #[test]
    fn hosts_and_origins() {
        assert_eq!(host_of("[::1]:7450"), "::1");
        assert_eq!(host_of("LocalHost:80"), "localhost");
        assert_eq!(host_of("127.0.0.1"), "127.0.0.1");
        for good in ["http://localhost:6274", "https://127.0.0.1", "http://[::1]:1/"] {
            assert!(origin_allowed(good, &[]), "{good}");
        }
        let bad = [
            "null",
            "http://evil.example",
            "http://127.0.0.1.evil.example",
            "file:///x",
            "http://localhost.evil.example:80",
            "http://127.evil.0.1",
        ];
        for bad in bad {
            assert!(!origin_allowed(bad, &[]), "{bad}");
        }
        assert!(origin_allowed("https://App.example", &["https://app.example/".into()]));
    }

    #[test]
    fn default_sessions() {
        assert_eq!(sessions_default(512, 256 << 20, None), 16);
        assert_eq!(sessions_default(64, 256 << 20, None), 4);
        assert_eq!(sessions_default(3, 256 << 20, None), 1);
        // a Node server of 80 MB in the smallest tier, a Go server of 8 MB, one that needs all there is
        assert_eq!(sessions_default(512, 256 << 20, Some(80 << 20)), 2);
        assert_eq!(sessions_default(512, 256 << 20, Some(8 << 20)), 21);
        assert_eq!(sessions_default(512, 256 << 20, Some(250 << 20)), 1);
        assert_eq!(sessions_default(512, 16 << 20, Some(1 << 20)), 1);
    }
}
