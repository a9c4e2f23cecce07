//! Where the tables lie: files with fsync, or an object store.
//!
//! `object_store`'s local file system syncs nothing, so files are written here: a name appears only when its bytes are
//! on the disk, and the folder is synced before the write counts.

use super::LakeError;
use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use url::Url;
use uuid::Uuid;

/// What became of writing a name that must be new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Created {
    Yes,
    /// Somebody else has written it.
    Exists,
}

#[derive(Clone)]
pub(super) struct Store {
    objects: Arc<dyn ObjectStore>,
    /// The folder, where it is one.
    root: Option<PathBuf>,
    url: Url,
}

impl Store {
    /// Opens a path, `file://…` or `memory:///`; makes the folder.
    pub fn open(url: &str) -> Result<Self, LakeError> {
        let unsupported = || LakeError::Location(url.to_owned());
        let path = match Url::parse(url) {
            Ok(parsed) if parsed.scheme() == "memory" => {
                let url = Url::parse("memory:///").map_err(|_| unsupported())?;
                return Ok(Self { objects: Arc::new(InMemory::new()), root: None, url });
            }
            Ok(parsed) if parsed.scheme() == "file" => parsed.to_file_path().map_err(|()| unsupported())?,
            Ok(_) => return Err(unsupported()),
            Err(_) => PathBuf::from(url),
        };
        let failed =
            |error: &dyn std::fmt::Display| LakeError::Store { place: url.to_owned(), reason: error.to_string() };
        make_folder(&path).map_err(|error| failed(&error))?;
        let root = path.canonicalize().map_err(|error| failed(&error))?;
        let objects = LocalFileSystem::new_with_prefix(&root).map_err(|error| failed(&error))?;
        let url = Url::from_directory_path(&root).map_err(|()| unsupported())?;
        Ok(Self { objects: Arc::new(objects), root: Some(root), url })
    }

    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        self.objects.clone()
    }

    /// A URL of its own kind: paths below it are those of [`Store::objects`].
    pub fn registration(&self) -> Url {
        // A literal that parses.
        Url::parse("lake://tables").unwrap_or_else(|_| self.url.clone())
    }

    /// The whole store that the tables lie in, and a folder's URL there: `deltalake` goes by absolute paths, and sorts
    /// listings only where the URL says that they are files.
    pub fn whole(&self, folder: &str) -> Result<(Arc<dyn ObjectStore>, Url), LakeError> {
        let url = self.url.join(&format!("{folder}/")).map_err(|error| self.failed(&error))?;
        let objects: Arc<dyn ObjectStore> = match &self.root {
            Some(_) => Arc::new(LocalFileSystem::new()),
            None => self.objects(),
        };
        Ok((objects, url))
    }

    pub fn failed(&self, error: &dyn std::fmt::Display) -> LakeError {
        let mut reason = error.to_string();
        if reason.contains("os error 28") && !reason.contains("No space left") {
            reason.push_str(" (no space left on device)");
        }
        LakeError::Store { place: self.url.to_string(), reason }
    }

    /// Writes a new object; it is durable when this returns.
    pub async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<(), LakeError> {
        match self.create(path, bytes).await? {
            Created::Yes => Ok(()),
            Created::Exists => Err(self.failed(&format!("{path} is there already"))),
        }
    }

    /// Writes an object unless the name is taken; it is durable when this returns.
    pub async fn create(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created, LakeError> {
        let Some(root) = &self.root else {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            return match self.objects.put_opts(path, bytes.into(), options).await {
                Ok(_) => Ok(Created::Yes),
                Err(object_store::Error::AlreadyExists { .. }) => Ok(Created::Exists),
                Err(error) => Err(self.failed(&error)),
            };
        };
        let target = root.join(path.as_ref());
        let written = tokio::task::spawn_blocking(move || create_file(&target, &bytes)).await;
        match written.map_err(|error| self.failed(&error))? {
            Ok(created) => Ok(created),
            Err(error) => Err(self.failed(&error)),
        }
    }

    pub async fn get(&self, path: &ObjectPath) -> Result<Bytes, LakeError> {
        let read = async { self.objects.get(path).await?.bytes().await };
        read.await.map_err(|error| self.failed(&error))
    }

    /// Removes an object; one that is not there is no error.
    pub async fn delete(&self, path: &ObjectPath) -> Result<(), LakeError> {
        match self.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Syncs everything below a folder that another library has written.
    pub async fn sync_folder(&self, folder: &str) -> Result<(), LakeError> {
        let Some(root) = &self.root else { return Ok(()) };
        let folder = root.join(folder);
        let synced = tokio::task::spawn_blocking(move || sync_below(&folder)).await;
        synced.map_err(|error| self.failed(&error))?.map_err(|error| self.failed(&error))
    }
}

fn create_file(target: &Path, bytes: &[u8]) -> io::Result<Created> {
    let folder = target.parent().unwrap_or(Path::new("."));
    make_folder(folder)?;
    let draft = folder.join(format!(".{}.draft", Uuid::now_v7()));
    let result = write_and_link(&draft, target, bytes);
    // The draft has served; if it cannot be removed it is an orphan among others.
    let _ = fs::remove_file(&draft);
    if matches!(result, Ok(Created::Yes)) {
        File::open(folder)?.sync_all()?;
    }
    result
}

fn write_and_link(draft: &Path, target: &Path, bytes: &[u8]) -> io::Result<Created> {
    let mut file = File::create_new(draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // A hard link fails where the name is taken, which a rename would not.
    match fs::hard_link(draft, target) {
        Ok(()) => Ok(Created::Yes),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Created::Exists),
        Err(error) => Err(error),
    }
}

/// Makes a folder and the ones above it, and syncs the parents of those it made.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new("."));
    make_folder(parent)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => File::open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?.sync_all(),
    }
}

fn sync_below(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { sync_below(&path)? } else { File::open(&path)?.sync_all()? }
    }
    File::open(folder)?.sync_all()
}
