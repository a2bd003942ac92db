//! The pin directories: root's alone, or not used.
//!
//! A bpffs is open to everybody unless it was mounted otherwise, as `/tmp` is.
//! Whoever makes our directory first could put a link in the place of an
//! instance's, and have root read, write and remove files wherever it leads.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{Instance, sys};

/// A pin directory that is not to be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct Error {
    /// Of the directory.
    pub path: PathBuf,
    /// Why.
    pub reason: io::Error,
}

/// Makes the directory of `instance`, for this user alone.
///
/// # Errors
///
/// What the kernel says, and those of [`check`].
pub fn make(instance: &Instance) -> Result<(), Error> {
    check(instance)?;
    let path = instance.pin_dir();
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path);
    made.map_err(|reason| Error { path, reason })?;
    check(instance)
}

/// Refuses directories of `instance` that somebody else made or could change.
/// That they are not there, or cannot be looked at, is left to what follows.
///
/// # Errors
///
/// [`Error`] with the remedy.
pub fn check(instance: &Instance) -> Result<(), Error> {
    [super::root(), instance.pin_dir()]
        .into_iter()
        .try_for_each(|path| one(&path).map_err(|reason| Error { path, reason }))
}

fn one(path: &Path) -> io::Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let refused = |reason: String| {
        let remedy = format!("{reason}: look who made it, remove it, then run again");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, remedy))
    };
    if !found.is_dir() {
        return refused("not a directory".into());
    }
    if found.uid() != 0 && found.uid() != sys::effective_user() {
        return refused(format!("it belongs to user {}, not to root", found.uid()));
    }
    if found.mode() & 0o022 != 0 {
        let mode = found.mode() & 0o7777;
        return refused(format!("others may write to it (mode {mode:o})"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn links_and_open_directories_are_refused() {
        let dir = std::env::temp_dir().join(format!("pinhole-pins-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
        assert!(one(&dir).is_ok());
        assert!(one(&dir.join("none")).is_ok(), "nothing is there");
        let link = dir.join("link");
        symlink("/etc", &link).unwrap();
        assert!(one(&link).is_err(), "a link");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(one(&dir).is_err(), "open to all");
        fs::remove_dir_all(&dir).unwrap();
    }
}
