//! `sigil mirror`.

use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::fail::{DONE, Failure, Outcome, USAGE};
use super::{Ctx, output, text};
use crate::link::Imported;

/// Take packages of another registry in
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A file holds what another registry's API answers (/v0.1/servers), a list of such items or of server.json documents, or one of them a line. Packages keep the name that they have there; one that was published here, or comes from another mirror, is not replaced, and a version that is here keeps its document.\n\nExample:\n  sigil mirror import servers.json --as official"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// From a file, for hosts without a way out
    #[command(after_help = "Example:\n  sigil mirror import servers.json --as official")]
    Import {
        /// JSON, or JSON lines
        file: PathBuf,
        /// What the mirror is called
        #[arg(long = "as", value_name = "NAME")]
        name: String,
    },
}

/// Largest file, bytes.
const FILE_MAX: u64 = 1 << 30;
/// Bytes sent at once.
const CHUNK: usize = 768 << 10;

pub async fn run(ctx: &Ctx, args: Args) -> Outcome {
    let Verb::Import { file, name } = args.verb;
    let shown = file.display().to_string();
    let bad = |why: String, hint: &str| Failure::new(USAGE, "BAD_FILE", format!("{shown}: {why}"), hint);
    let length = std::fs::metadata(&file).map_err(|e| bad(e.to_string(), "name a file"))?.len();
    if length > FILE_MAX {
        return Err(bad("it is larger than 1 GiB".into(), "take it in parts"));
    }
    let words = std::fs::read_to_string(&file).map_err(|e| bad(e.to_string(), "name a file of JSON"))?;
    let items = items(&words).map_err(|why| bad(why, "save what /v0.1/servers answers, or a list of server.json"))?;
    let link = ctx.link().await?;
    let mut done = Imported::default();
    let mut chunks = chunks(items).into_iter().peekable();
    while let Some(chunk) = chunks.next() {
        done.add(link.import(&name, chunk, chunks.peek().is_none()).await?);
    }
    ctx.emit(&done, || {
        let Imported { new, changed, known, refusals, .. } = &done;
        format!("{new} versions are new, {changed} changed, {known} were here as they are, {refusals} were not taken\n")
    })?;
    if !ctx.format.is_data() {
        for line in &done.refused {
            output::note(&text::one_line(line));
        }
    }
    Ok(DONE)
}

/// Whatever form the items come in.
fn items(words: &str) -> Result<Vec<Json>, String> {
    let all = match serde_json::from_str::<Json>(words) {
        Ok(Json::Array(list)) => list,
        Ok(Json::Object(mut map)) => match map.remove("servers") {
            Some(Json::Array(list)) => list,
            _ => vec![Json::Object(map)],
        },
        Ok(_) => return Err("it holds no packages".into()),
        Err(whole) => {
            let lines = words.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str);
            lines.collect::<Result<_, _>>().map_err(|_| format!("it is no JSON: {whole}"))?
        }
    };
    Ok(all
        .into_iter()
        .map(|item| if item.get("server").is_some() { item } else { json!({ "server": item }) })
        .collect())
}

/// In order, each small enough to be sent.
fn chunks(items: Vec<Json>) -> Vec<Vec<String>> {
    let (mut out, mut size) = (vec![Vec::new()], 0);
    for item in items {
        let text = item.to_string();
        if size > 0 && size + text.len() > CHUNK {
            out.push(Vec::new());
            size = 0;
        }
        size += text.len();
        if let Some(last) = out.last_mut() {
            last.push(text);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_a_list_of_items() {
        let one = r#"{"name": "a/b", "version": "1"}"#;
        for words in [
            format!(r#"{{"servers": [{{"server": {one}, "_meta": {{}}}}], "metadata": {{}}}}"#),
            format!("[{one}]"),
            one.to_owned(),
            format!("{{\"server\": {one}}}\n\n"),
        ] {
            let items = items(&words).unwrap();
            assert_eq!((items.len(), &items[0]["server"]["name"]), (1, &json!("a/b")), "{words}");
        }
        assert_eq!(items(&format!("{one}\n{one}\n")).unwrap().len(), 2);
        assert!(items("7").is_err() && items("{").is_err());
        let large = vec![json!({"server": "x".repeat(CHUNK / 2)}); 5];
        assert_eq!(chunks(large).iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 1, 1]);
    }
}
