//! Answers made smaller for clients that ask.

use std::io::Read;
use std::sync::Arc;

use super::NAME;
use super::fixture::{Front, HttpServer, SERVER, accept, call, owned, stdio};

fn asking(session: Option<&str>, coding: &str) -> Vec<(String, String)> {
    let mut headers = accept(session);
    headers.extend(owned(&[("accept-encoding", coding)]));
    headers
}

async fn large(front: &Front, coding: &str, tool: &str) -> (hyper::HeaderMap, Vec<u8>) {
    front.bytes("POST", &format!("/mcp/{NAME}"), &asking(None, coding), &call(7, tool)).await
}

#[tokio::test]
async fn whole_answers_are_compressed_and_streams_are_not() {
    let front = Front::new().await;
    let server = HttpServer::start().await;
    front.set(&[(NAME, vec![server.endpoint()])]);
    for (coding, wanted) in [("gzip, deflate", "gzip"), ("gzip, zstd", "zstd")] {
        for tool in ["long", "longest"] {
            let (headers, body) = large(&front, coding, tool).await;
            assert_eq!(headers["content-encoding"], wanted);
            assert_eq!(headers["vary"], "accept-encoding");
            assert_eq!(headers["content-length"], body.len().to_string().as_str());
            let text = match wanted {
                "gzip" => {
                    let mut text = String::new();
                    flate2::read::GzDecoder::new(body.as_slice()).read_to_string(&mut text).unwrap();
                    text
                }
                _ => String::from_utf8(zstd::bulk::decompress(&body, 4 << 20).unwrap()).unwrap(),
            };
            assert!(body.len() * 4 < text.len(), "{} of {}", body.len(), text.len());
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(
                (value["id"].as_i64(), value["result"]["text"].as_str().map(|t| t.starts_with("long "))),
                (Some(7), Some(true))
            );
        }
    }
    // small ones, streams, and clients that do not ask
    for (coding, tool) in [("gzip", "whoami"), ("gzip", "stream-now"), ("identity", "long"), ("gzip;q=0", "long")] {
        let (headers, body) = large(&front, coding, tool).await;
        assert!(!headers.contains_key("content-encoding"), "{coding} {tool}");
        assert!(std::str::from_utf8(&body).unwrap().contains("\"id\":7"), "{coding} {tool}");
        assert_eq!(headers.contains_key("vary"), tool == "long", "{coding} {tool}");
    }
    front.configure(|config| config.gateway.compress = false);
    let (headers, _) = large(&front, "gzip", "long").await;
    assert!(!headers.contains_key("content-encoding") && !headers.contains_key("vary"));
    // a process's answer, through its access log's eyes
    front.configure(|config| {
        config.gateway.compress = true;
        config.gateway.access_log = true;
    });
    front.set(&[(NAME, vec![Arc::clone(&stdio(SERVER))])]);
    let id = front.begin(NAME).await;
    // the handshake's notification makes the first answer a stream
    front.post(NAME, Some(&id), call(1, "echo")).await;
    let (headers, body) =
        front.bytes("POST", &format!("/mcp/{NAME}"), &asking(Some(&id), "gzip"), &call(2, "large")).await;
    if headers["content-type"] == "application/json" {
        assert_eq!(headers["content-encoding"], "gzip");
        assert!(body.len() < 64 << 10, "{}", body.len());
    } else {
        // a stalled machine made it a stream
        assert!(!headers.contains_key("content-encoding"));
    }
}
