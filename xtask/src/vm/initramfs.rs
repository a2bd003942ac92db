//! The file system that a virtual machine boots from: one program, as process 1,
//! what that calls, and the libraries that they need.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::ctx::Ctx;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
/// Where the kernel mounts nothing by itself, and where programs write.
const DIRECTORIES: [&str; 6] = ["dev", "proc", "sys", "run", "tmp", "root"];

/// An archive with `program` as `/init`. A dynamic one finds its libraries where
/// it finds them here.
pub(super) fn build(ctx: &Ctx, program: &Path) -> Result<Archive> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(Path::new(directory));
    }
    archive.program(ctx, program, Path::new("init"))?;
    Ok(archive)
}

/// Debug information is most of a program, and all of it would have to be loaded.
fn strip(ctx: &Ctx, program: &Path) -> Result<Vec<u8>> {
    let stripped = ctx.vm().join(format!("init-{}", std::process::id()));
    let mut strip = ctx.user("strip");
    strip.arg("-o").args([&stripped, program]);
    ctx.run(&mut strip)?;
    let content = fs::read(&stripped)?;
    crate::ctx::remove(&stripped)?;
    Ok(content)
}

fn libraries(ctx: &Ctx, program: &Path) -> Result<Vec<PathBuf>> {
    let listed = ctx.capture(ctx.user("ldd").arg(program))?;
    Ok(paths(&listed).map(PathBuf::from).collect())
}

/// The files in what ldd prints: `name => /path (address)` or `/path (address)`.
fn paths(listed: &str) -> impl Iterator<Item = &str> {
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

/// A cpio archive of the kind "newc" (kernel, Documentation/driver-api/early-userspace/
/// buffer-format.rst), uncompressed: what is read once from memory gains nothing.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    directories: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl Archive {
    /// A program of this machine without its debug information, and its libraries, which
    /// keep their places.
    pub(super) fn program(&mut self, ctx: &Ctx, program: &Path, to: &Path) -> Result<()> {
        self.file(to, &strip(ctx, program)?);
        for library in libraries(ctx, program)? {
            self.copy(&library, &library)?;
        }
        Ok(())
    }

    /// A file of this machine.
    pub(super) fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let content = fs::read(from);
        let content = content.with_context(|| format!("cannot read {}", from.display()))?;
        self.file(to, &content);
        Ok(())
    }

    /// A file, after the directories that it needs; one that is there already stays.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) {
        let path = path.strip_prefix("/").unwrap_or(path);
        if !self.files.insert(path.to_owned()) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.entry(path, EXECUTABLE, content);
    }

    pub(super) fn directory(&mut self, path: &Path) {
        let path = path.strip_prefix("/").unwrap_or(path);
        let ancestors: Vec<&Path> = path.ancestors().collect();
        for directory in ancestors.into_iter().rev() {
            let new =
                !directory.as_os_str().is_empty() && self.directories.insert(directory.to_owned());
            if new {
                self.entry(directory, DIRECTORY, &[]);
            }
        }
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        self.inode += 1;
        let name = path.as_os_str().as_encoded_bytes();
        // ino, mode, uid, gid, nlink, mtime, filesize, device major and minor,
        // the same of a special file, namesize, check.
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let whole = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(whole, 0);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(Path::new("TRAILER!!!"), 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_files_among_what_ldd_says() {
        let listed = "\tlinux-vdso.so.1 (0x00007fda9dc70000)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fda9d21e000)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007fda9dc72000)\n";
        let paths: Vec<&str> = paths(listed).collect();
        assert_eq!(
            paths,
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
        assert_eq!(super::paths("\tstatically linked\n").count(), 0);
    }

    #[test]
    fn directories_come_once_and_before_their_files() {
        let mut archive = Archive::default();
        archive.file(Path::new("/lib/x/a"), b"hello");
        archive.file(Path::new("/lib/x/b"), b"");
        archive.file(Path::new("/lib/x/a"), b"again");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let entries: Vec<&str> = text.split("070701").skip(1).collect();
        let names: Vec<&str> = entries
            .iter()
            .filter_map(|entry| entry[104..].split('\0').next())
            .collect();
        assert_eq!(names, ["lib", "lib/x", "lib/x/a", "lib/x/b", "TRAILER!!!"]);
        // 118 bytes of header and name, padded to a multiple of four, as is the content.
        assert_eq!(&entries[2][112..], "\0\0hello\0\0\0");
    }
}
