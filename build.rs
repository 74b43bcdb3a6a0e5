//! Builds the bundled guest, a crate of its own for bare metal, so that it can be included in
//! the binary.

use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    println!("cargo:rerun-if-changed=guest/src");
    println!("cargo:rerun-if-changed=guest/Cargo.toml");
    println!("cargo:rerun-if-changed=guest/build.rs");
    println!("cargo:rerun-if-changed=guest/guest.ld");
    let var = |name: &str| std::env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let out = PathBuf::from(var("OUT_DIR"));
    let target_dir = out.join("guest");
    let status = Command::new(var("CARGO"))
        .args(["build", "--release", "--quiet", "--target", TARGET, "--manifest-path"])
        .arg(PathBuf::from(var("CARGO_MANIFEST_DIR")).join("guest/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        // What the outer build is told (sanitizers, coverage, lints) would not link on bare metal.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env("RUSTFLAGS", "-C relocation-model=static -C panic=abort")
        .status()
        .unwrap_or_else(|e| panic!("cargo could not be run for the bundled guest: {e}"));
    assert!(status.success(), "the bundled guest could not be built: {status}");
    let built = target_dir.join(TARGET).join("release/piton-guest");
    std::fs::copy(&built, out.join("guest.elf")).unwrap_or_else(|e| panic!("{}: {e}", built.display()));
}
