//! Builds init as a static program and leaves it in OUT_DIR, from where `initlink` embeds it.
//!
//! A nested cargo with a target directory of its own: it shares nothing with the outer one but the job server, so
//! neither waits for the other's lock.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=init/src");
    println!("cargo::rerun-if-changed=init/Cargo.toml");
    println!("cargo::rerun-if-changed=build.rs");
    if let Err(why) = build() {
        // The only way for a build script to fail with a reason.
        println!("cargo::error=init could not be built: {why}");
        std::process::exit(1);
    }
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set; build with cargo"))
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let target = variable("TARGET")?;
    let manifest = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("init").join("Cargo.toml");
    let directory = out.join("init");
    let upper = target.to_uppercase().replace(['-', '.'], "_");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .args(["build", "--quiet", "--locked", "--bin", "sigil-init", "--profile", "init", "--target", &target])
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&directory)
        // Flags and wrappers meant for the outer build (clippy, coverage, sanitizers) do not belong into it.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CLIPPY_ARGS")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_BUILD_TARGET_DIR")
        .env_remove("CARGO_BUILD_RUSTFLAGS")
        .env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), "-C target-feature=+crt-static -C relocation-model=static");
    let done = cargo.output().map_err(|e| format!("cargo: {e}"))?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).lines().take(40).collect::<Vec<_>>().join("\ncargo::error="));
    }
    let built = directory.join(&target).join("init").join("sigil-init");
    std::fs::copy(&built, out.join("sigil-init")).map_err(|e| format!("{}: {e}", built.display()))?;
    Ok(())
}
