//! Answers made smaller for clients that ask for it: whole ones of known length only. An event stream is passed on as it is
//! written, and so is everything that is small, or large enough for waiting to cost more than the wire.

use std::io::Write;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::Response;
use hyper::body::Body as _;
use hyper::header::{self, HeaderMap, HeaderValue};

use super::body::Out;
use super::error::Refusal;

/// Shorter answers gain nothing.
const LEAST: u64 = 1 << 10;
/// Longer ones are not collected: an agent that holds many of them at once would grow with its callers.
const MOST: u64 = 4 << 20;
/// From here on the work is no longer done between two other requests.
const LARGE: usize = 32 << 10;
/// zstd's cheapest levels compress JSON better than gzip's best.
const LEVEL: i32 = 1;

/// What a client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Zstd,
    Gzip,
}

impl Coding {
    /// The best of what `Accept-Encoding` asks for; the client's weights decide, then ours.
    pub(crate) fn asked(headers: &HeaderMap) -> Option<Self> {
        let mut best: Option<(u16, Self)> = None;
        for part in
            headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','))
        {
            let (name, weight) = part.split_once(';').unwrap_or((part, ""));
            let name = name.trim();
            let coding = match name {
                _ if name.eq_ignore_ascii_case("zstd") => Self::Zstd,
                _ if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") => Self::Gzip,
                _ => continue,
            };
            let weight = weight.trim().strip_prefix("q=").map_or(Some(1.0_f32), |q| q.trim().parse().ok());
            let Some(weight) = weight.filter(|w| *w > 0.0 && *w <= 1.0) else { continue };
            let weight = (weight * 1000.0) as u16;
            if best.is_none_or(|(most, of)| weight > most || (weight == most && of == Self::Gzip)) {
                best = Some((weight, coding));
            }
        }
        best.map(|(_, coding)| coding)
    }

    fn name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        })
    }

    fn compress(self, data: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Zstd => zstd::bulk::compress(data, LEVEL),
            Self::Gzip => {
                let room = Vec::with_capacity(data.len() / 3);
                let mut encoder = flate2::write::GzEncoder::new(room, flate2::Compression::fast());
                encoder.write_all(data)?;
                encoder.finish()
            }
        }
    }
}

/// Whether an answer is one that may be made smaller.
pub(crate) fn fits(response: &Response<Out>) -> bool {
    let headers = response.headers();
    let length = match response.body() {
        Out::Events(_) => return false,
        // what is looked at on its way has no length that is known
        body => body.size_hint().exact(),
    };
    let json = || {
        let kind = crate::upstream::http::media_type(headers);
        kind == "application/json" || kind == "application/schema+json" || kind.starts_with("text/plain")
    };
    length.is_some_and(|n| (LEAST + 1..=MOST).contains(&n)) && !headers.contains_key(header::CONTENT_ENCODING) && json()
}

/// Makes an answer smaller that [`fits`]. `name`: the deployment, for words.
pub(crate) async fn encode(response: Response<Out>, coding: Option<Coding>, name: &str) -> Response<Out> {
    let (mut parts, body) = response.into_parts();
    parts.headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    let Some(coding) = coding else { return Response::from_parts(parts, body) };
    let limit = usize::try_from(MOST).unwrap_or(usize::MAX);
    let data = match Limited::new(body, limit).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => {
            let what = format!("'{name}' broke its answer off; the call was not sent again ({error})");
            return super::serve::refuse(&Refusal::failed(name, what), None);
        }
    };
    let compressed = if data.len() > LARGE {
        let whole = data.clone();
        tokio::task::spawn_blocking(move || coding.compress(&whole))
            .await
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
    } else {
        coding.compress(&data)
    };
    let out = match compressed {
        Ok(small) if small.len() < data.len() => {
            parts.headers.insert(header::CONTENT_ENCODING, coding.name());
            Bytes::from(small)
        }
        Ok(_) => data,
        Err(error) => {
            tracing::warn!(%error, "an answer could not be compressed; it goes out as it is");
            data
        }
    };
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(out.len()));
    Response::from_parts(parts, Out::full(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Option<Coding> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_str(text).unwrap());
        Coding::asked(&headers)
    }

    #[test]
    fn weights_of_clients_decide() {
        assert_eq!(asked("gzip, deflate, br, zstd"), Some(Coding::Zstd));
        assert_eq!(asked("zstd, gzip"), Some(Coding::Zstd));
        assert_eq!(asked("gzip, deflate, br"), Some(Coding::Gzip));
        assert_eq!(asked("GZIP;q=0.8, zstd;q=0.2"), Some(Coding::Gzip));
        assert_eq!(asked("gzip;q=0, zstd; q=0"), None);
        assert_eq!(asked("gzip;q=many, br, identity"), None);
        assert_eq!(Coding::asked(&HeaderMap::new()), None);
    }

    #[test]
    fn what_is_compressed_comes_back() {
        let text = "{\"name\":\"tool\"},".repeat(500);
        let gzip = Coding::Gzip.compress(text.as_bytes()).unwrap();
        let mut read = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(gzip.as_slice()), &mut read).unwrap();
        assert_eq!(read, text);
        let zstd = Coding::Zstd.compress(text.as_bytes()).unwrap();
        assert_eq!(zstd::bulk::decompress(&zstd, text.len()).unwrap(), text.as_bytes());
    }
}
