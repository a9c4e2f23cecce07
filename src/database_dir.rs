//! The directory of a fjall database that was being made when the process was killed.
//!
//! fjall lays out a new directory step by step and writes the file `version` last; opened again without it, it begins anew
//! and fails at the journal it finds. [`clear_unfinished`] takes away what such a beginning left.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

/// Removes what a database in the making left in `dir`, so that it can be made anew. Does nothing to a directory that holds
/// a database, or anything that a database has been told: nothing is told to one before `version` is on disk. Leaves a
/// directory alone that another process is at work in.
///
/// # Errors
/// What the file system says; a retry helps if that passes.
pub fn clear_unfinished(dir: &Path) -> io::Result<()> {
    let version = dir.join("version");
    let is_whole = fs::metadata(&version).is_ok_and(|file| file.len() > 0);
    let (lock, journal) = (dir.join("lock"), dir.join("0.jnl"));
    if is_whole || !lock.try_exists()? || !is_empty(&dir.join("keyspaces"))? {
        return Ok(());
    }
    let lock = File::options().write(true).open(lock)?;
    match lock.try_lock() {
        // Whoever holds it opens the database next, or is making it.
        Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(error)) => return Err(error),
        Ok(()) => {}
    }
    // Meanwhile another process may have made it.
    if fs::metadata(&version).is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    for file in [journal, version] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether somebody has the database in `dir` open.
///
/// # Errors
/// What the file system says; a retry helps if that passes.
pub fn is_in_use(dir: &Path) -> io::Result<bool> {
    match File::options().write(true).open(dir.join("lock")) {
        Ok(lock) => match lock.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};

    fn open(dir: &Path) -> Result<Database, fjall::Error> {
        clear_unfinished(dir)?;
        Database::builder(dir).open()
    }

    /// The steps in which a database is laid out, the last left out.
    fn lay_out(dir: &Path, steps: usize) {
        let steps_of: [&dyn Fn() -> io::Result<()>; 5] = [
            &|| fs::create_dir_all(dir),
            &|| File::create(dir.join("lock")).map(drop),
            &|| fs::create_dir(dir.join("keyspaces")),
            &|| fs::write(dir.join("0.jnl"), [0; 4096]),
            &|| File::create(dir.join("version")).map(drop),
        ];
        steps_of[..steps].iter().try_for_each(|step| step()).unwrap();
    }

    #[test]
    fn a_database_cut_off_at_any_step_of_its_making_is_made_anew() {
        for steps in 0..=5 {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path().join("database");
            lay_out(&dir, steps);
            let database = open(&dir).unwrap_or_else(|error| panic!("cut off after {steps} steps: {error}"));
            let keyspace = database.keyspace("users", KeyspaceCreateOptions::default).unwrap();
            keyspace.insert("a", "b").unwrap();
            database.persist(PersistMode::SyncAll).unwrap();
            drop((keyspace, database));
            let database = open(&dir).unwrap();
            let keyspace = database.keyspace("users", KeyspaceCreateOptions::default).unwrap();
            assert_eq!(keyspace.get("a").unwrap().as_deref(), Some(b"b".as_slice()));
        }
    }

    #[test]
    fn a_database_that_lost_its_version_keeps_all_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let database = open(dir.path()).unwrap();
        database.keyspace("users", KeyspaceCreateOptions::default).unwrap();
        drop(database);
        let version = fs::read(dir.path().join("version")).unwrap();
        fs::remove_file(dir.path().join("version")).unwrap();
        assert!(open(dir.path()).is_err());
        fs::write(dir.path().join("version"), version).unwrap();
        assert!(open(dir.path()).unwrap().keyspace_exists("users"));
    }

    #[test]
    fn a_database_is_in_use_as_long_as_it_is_open() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_in_use(dir.path()).unwrap());
        let database = open(dir.path()).unwrap();
        assert!(is_in_use(dir.path()).unwrap());
        drop(database);
        assert!(!is_in_use(dir.path()).unwrap());
        open(dir.path()).unwrap();
    }

    #[test]
    fn a_database_in_the_making_is_left_to_who_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        lay_out(dir.path(), 4);
        let maker = File::open(dir.path().join("lock")).unwrap();
        maker.lock().unwrap();
        assert!(matches!(open(dir.path()), Err(fjall::Error::Locked)));
        assert!(dir.path().join("0.jnl").exists());
    }
}
