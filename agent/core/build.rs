//! Names the scanner by what it is made of, so that nothing which was kept of an older one passes for its own answer.

#![allow(clippy::disallowed_methods, reason = "it names the core's source, and is no part of the core")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/scan.rs");
    println!("cargo::rerun-if-changed=src/scan");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    match name() {
        Ok(name) => println!("cargo::rustc-env=SIGIL_SCAN_ENGINE={name:016x}"),
        // the only way for a build script to fail with a reason
        Err(why) => println!("cargo::error=the scanner's source cannot be read: {why}"),
    }
}

/// FNV-1a over the scanner's files and the versions of the grammars: it tells versions apart, and guards nothing.
fn name() -> io::Result<u64> {
    let mut files = vec![PathBuf::from("src/scan.rs")];
    collect(Path::new("src/scan"), &mut files)?;
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for file in files {
        add(&mut hash, file.to_string_lossy().as_bytes());
        add(&mut hash, &fs::read(&file)?);
    }
    let mut grammar = false;
    for line in fs::read_to_string("../../Cargo.lock")?.lines() {
        if let Some(name) = line.strip_prefix("name = ") {
            grammar = name.starts_with("\"tree-sitter") || name == "\"regex\"";
        }
        if grammar && (line.starts_with("name = ") || line.starts_with("version = ")) {
            add(&mut hash, line.as_bytes());
        }
    }
    Ok(hash)
}

fn add(hash: &mut u64, bytes: &[u8]) {
    for byte in bytes.iter().chain(&[0xff]) {
        *hash = (*hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
