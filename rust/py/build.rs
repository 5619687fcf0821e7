//! Puts the digest of the Rust sources into the extension, so that a stale build is noticed.
//!
//! The digest is SHA-256 over, for each file in ascending order of its path from the project's root (with `/`):
//! path ‖ 0x00 ‖ length as big-endian u64 ‖ content. The files: `Cargo.toml`, `Cargo.lock`, `.cargo/config.toml`, and in
//! `rust/core` and `rust/py` the `Cargo.toml`, `build.rs` and everything below `src`.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use sha2::{Digest, Sha256};

const SOURCES: [&str; 8] = [
    ".cargo/config.toml",
    "Cargo.lock",
    "Cargo.toml",
    "rust/core/Cargo.toml",
    "rust/core/src",
    "rust/py/Cargo.toml",
    "rust/py/build.rs",
    "rust/py/src",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../..");
    let mut files = Vec::new();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
        collect(&root, Path::new(source), &mut files)?;
    }
    files.sort_unstable();
    let mut digest = Sha256::new();
    for (path, content) in &files {
        digest.update(path);
        digest.update([0]);
        digest.update((content.len() as u64).to_be_bytes());
        digest.update(content);
    }
    let mut hex = String::new();
    for byte in digest.finalize() {
        write!(hex, "{byte:02x}")?;
    }
    println!("cargo::rustc-env=KEEPSTEP_SOURCE_DIGEST={hex}");
    Ok(())
}

/// Every file at or below `path`, as (path from the root, content).
fn collect(root: &Path, path: &Path, files: &mut Vec<(String, Vec<u8>)>) -> Result<(), Box<dyn Error>> {
    let absolute = root.join(path);
    if absolute.is_dir() {
        for entry in fs::read_dir(absolute)? {
            collect(root, &path.join(PathBuf::from(entry?.file_name())), files)?;
        }
    } else if absolute.is_file() {
        let name = path.to_str().ok_or("a source file's name is not UTF-8")?.replace('\\', "/");
        files.push((name, fs::read(absolute)?));
    }
    Ok(())
}
