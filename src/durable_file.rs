//! Small JSON files that are whole or not there, and on the disk before anything counts on them. Some hold secrets, so only
//! their owner can read them.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What stands behind the name of a file that is not complete.
const PARTIAL: &str = ".partial";

/// Why a file could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum DurableFileError {
    /// The disk's or the system's fault. A failed write leaves the old file or the new one, whole.
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    /// What it holds is not what was written. Nothing here repairs it.
    #[error("{path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
}

impl DurableFileError {
    fn io(path: &Path, error: io::Error) -> Self {
        DurableFileError::Io { path: path.to_owned(), error }
    }
}

/// Writes a file as JSON, in the place of the old one. It is durable when this returns, and nobody ever sees a part of it.
/// Makes the folder where it is missing. Two writers of one path must take turns.
pub fn write(path: &Path, content: &impl Serialize) -> Result<(), DurableFileError> {
    let failed = |error| DurableFileError::io(path, error);
    let mut text = serde_json::to_vec_pretty(content).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    let folder = folder(path);
    make_folder(folder).map_err(failed)?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(PARTIAL);
    let write = || {
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_folder(folder)
    };
    write().map_err(failed)
}

/// Reads a file; `None` where there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DurableFileError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DurableFileError::io(path, error)),
    };
    let damaged = |error: serde_json::Error| DurableFileError::Damaged { path: path.into(), reason: error.to_string() };
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

/// Removes a file for good; one that is not there is no error.
pub fn remove(path: &Path) -> Result<(), DurableFileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(folder(path)).map_err(|error| DurableFileError::io(path, error)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(DurableFileError::io(path, error)),
    }
}

/// The files named `*.json` in a folder, by name; none where there is no folder.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, DurableFileError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(DurableFileError::io(folder, error)),
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(|error| DurableFileError::io(folder, error))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    Ok(paths)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    sync_folder(self::folder(folder))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_written_is_read_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some/one.json");
        assert_eq!(read::<u32>(&path).unwrap(), None);
        remove(&path).unwrap();
        write(&path, &7).unwrap();
        write(&path, &8).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), Some(8));
        assert_eq!(list(&dir.path().join("some")).unwrap(), std::slice::from_ref(&path));
        remove(&path).unwrap();
        assert!(list(&dir.path().join("some")).unwrap().is_empty() && list(&path).unwrap().is_empty());
    }

    #[test]
    fn only_the_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.json");
        // As another program may have left it.
        fs::write(&path, "6").unwrap();
        write(&path, &7).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_unfinished_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.json");
        write(&path, &7).unwrap();
        // As a kill in the middle of a write leaves it.
        fs::write(dir.path().join("one.json.partial"), "[1, ").unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), Some(7));
        assert_eq!(list(dir.path()).unwrap(), std::slice::from_ref(&path));
        write(&path, &8).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), Some(8));
        assert!(!dir.path().join("one.json.partial").exists());
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.json");
        write(&path, &7).unwrap();
        fs::create_dir(dir.path().join("one.json.partial")).unwrap();
        assert!(write(&path, &8).unwrap_err().to_string().contains("one.json"));
        assert_eq!(read::<u32>(&path).unwrap(), Some(7));
    }

    #[test]
    fn damage_is_told_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.json");
        fs::write(&path, "{\"half\":").unwrap();
        let error = read::<serde_json::Value>(&path).unwrap_err();
        assert!(matches!(error, DurableFileError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("one.json is damaged: EOF"), "{error}");
    }
}
