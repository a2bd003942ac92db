//! The pin directories: root's alone, or not used.
//!
//! A bpffs is open to everybody unless it was mounted otherwise, as `/tmp` is.
//! Whoever makes our directory first could put a link in the place of an
//! instance's, and have root read, write and remove files wherever it leads.

use std::{
    fs::{self, File},
    io,
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

/// Keeps all others from making and removing instances, as long as it lives: not
/// while programs are loaded, or instances would wait for each other.
///
/// It is on the directory above all instances, which goes with it when it is
/// empty then.
#[derive(Debug)]
pub struct Lock {
    _directory: File,
    path: PathBuf,
}

impl Lock {
    /// Makes the directory above all instances, and waits for its lock.
    ///
    /// # Errors
    ///
    /// What the kernel says, and those of [`check`].
    pub fn wait() -> Result<Self, Error> {
        let path = super::root();
        lock(&path)
            .map(|directory| Self {
                _directory: directory,
                path: path.clone(),
            })
            .map_err(|reason| Error { path, reason })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Not empty while there is an instance.
        let _ = fs::remove_dir(&self.path);
    }
}

fn lock(path: &Path) -> io::Result<File> {
    loop {
        one(path)?;
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let directory = match File::open(path) {
            // It went with its last instance.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        directory.lock()?;
        one(path)?;
        if is_at(&directory, path) {
            return Ok(directory);
        }
    }
}

/// Is `directory` still what is at `path`? Whoever had the lock may have
/// removed it.
fn is_at(directory: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (directory.metadata(), fs::symlink_metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
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
    fn the_lock_is_on_what_is_there_now() {
        let path = std::env::temp_dir().join(format!("pinhole-lock-{}", std::process::id()));
        let first = lock(&path).unwrap();
        assert!(File::open(&path).unwrap().try_lock().is_err());
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || lock(&path)
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::remove_dir(&path).unwrap();
        drop(first);
        let second = waiting.join().unwrap().unwrap();
        assert!(is_at(&second, &path), "made again");
        assert!(File::open(&path).unwrap().try_lock().is_err());
        fs::remove_dir(&path).unwrap();
    }

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
