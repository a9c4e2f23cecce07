//! Where the tables lie: files with fsync, or an object store.
//!
//! `object_store`'s local file system syncs nothing, so files are written here: a name appears only when its bytes are
//! on the disk, and the folder is synced before the write counts. What an object store has answered is durable; where its
//! answer was lost, asking again tells.

use super::s3::{self, Bucket};
use super::{LakeError, Location};
use bytes::Bytes;
use futures::stream::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

/// Larger objects are sent in parts.
const IN_PARTS_FROM: usize = 16 << 20;
const PART_BYTES: usize = 8 << 20;
const PARTS_AT_A_TIME: usize = 4;
/// A conditional write whose answer did not come is asked for again so soon, and for so long.
const ASK_AGAIN: Duration = Duration::from_millis(200);
const ASK_FOR: Duration = Duration::from_secs(10);

/// What became of writing a name that must be new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Created {
    Yes,
    /// Somebody else has written it.
    Exists,
}

#[derive(Clone)]
pub(super) struct Store {
    /// The root is the tables' folder.
    objects: Arc<dyn ObjectStore>,
    /// The folder, where it is one.
    root: Option<PathBuf>,
    /// The store whose root is that of `url`.
    whole: Arc<dyn ObjectStore>,
    url: Url,
}

impl Store {
    /// Opens the tables' place; makes the folder, tries out the object store.
    pub async fn open(location: &Location) -> Result<Self, LakeError> {
        let url = &location.url;
        let unsupported = || LakeError::Location(url.clone());
        let path = match Url::parse(url) {
            Ok(parsed) if parsed.scheme() == "memory" => {
                return Self::in_memory();
            }
            Ok(parsed) if parsed.scheme() == "s3" => {
                let Bucket { whole, below, url } = s3::open(&parsed, &location.s3)?;
                let store = Self { objects: below, root: None, whole, url };
                store.try_out().await?;
                return Ok(store);
            }
            Ok(parsed) if parsed.scheme() == "file" => parsed.to_file_path().map_err(|()| unsupported())?,
            Ok(_) => return Err(unsupported()),
            Err(_) => PathBuf::from(url),
        };
        let failed = |error: &dyn std::fmt::Display| LakeError::Store { place: url.clone(), reason: error.to_string() };
        make_folder(&path).map_err(|error| failed(&error))?;
        let root = path.canonicalize().map_err(|error| failed(&error))?;
        let objects = LocalFileSystem::new_with_prefix(&root).map_err(|error| failed(&error))?;
        let url = Url::from_directory_path(&root).map_err(|()| unsupported())?;
        Ok(Self { objects: Arc::new(objects), root: Some(root), whole: Arc::new(LocalFileSystem::new()), url })
    }

    /// An empty store of its own.
    pub fn in_memory() -> Result<Self, LakeError> {
        let url = Url::parse("memory:///").map_err(|_| LakeError::Location("memory:///".to_owned()))?;
        Ok(Self::over(Arc::new(InMemory::new()), url))
    }

    /// A store without a folder, whose root is the tables' folder.
    pub fn over(objects: Arc<dyn ObjectStore>, url: Url) -> Self {
        Self { whole: objects.clone(), objects, root: None, url }
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
    /// listings only where the URL says that they are files; an object store lists in order.
    pub fn whole(&self, folder: &str) -> Result<(Arc<dyn ObjectStore>, Url), LakeError> {
        let url = self.url.join(&format!("{folder}/")).map_err(|error| self.failed(&error))?;
        Ok((self.whole.clone(), url))
    }

    /// The place, for people.
    pub fn place(&self) -> String {
        self.url.to_string()
    }

    pub fn failed(&self, error: &dyn std::fmt::Display) -> LakeError {
        let mut reason = s3::brief(&error.to_string());
        if reason.contains("os error 28") && !reason.contains("No space left") {
            reason.push_str(" (no space left on device)");
        }
        LakeError::Store { place: self.place(), reason }
    }

    /// Writes a new object whose name nobody else uses; it is durable when this returns.
    pub async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<(), LakeError> {
        if self.root.is_none() && bytes.len() > IN_PARTS_FROM {
            return self.put_in_parts(path, bytes).await.map_err(|error| self.failed(&error));
        }
        match self.create(path, bytes).await? {
            Created::Yes => Ok(()),
            Created::Exists => Err(self.failed(&format!("{path} is there already"))),
        }
    }

    async fn put_in_parts(&self, path: &ObjectPath, bytes: Bytes) -> object_store::Result<()> {
        let mut upload = self.objects.put_multipart(path).await?;
        let parts = (0..bytes.len()).step_by(PART_BYTES);
        let parts: Vec<_> = parts
            .map(|start| upload.put_part(bytes.slice(start..bytes.len().min(start + PART_BYTES)).into()))
            .collect();
        let sent = futures::stream::iter(parts).buffer_unordered(PARTS_AT_A_TIME).try_collect::<()>().await;
        let done = match sent {
            Ok(()) => upload.complete().await.map(drop),
            Err(error) => Err(error),
        };
        let Err(error) = done else { return Ok(()) };
        // It may be complete, and the answer lost.
        if self.objects.head(path).await.is_ok_and(|found| found.size == bytes.len() as u64) {
            return Ok(());
        }
        // Parts that cannot be given up now are for the store's own rules.
        let _ = upload.abort().await;
        Err(error)
    }

    /// Writes an object unless the name is taken; it is durable when this returns. No two callers may write the same
    /// bytes under one name: by its bytes an object is known as one's own.
    pub async fn create(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created, LakeError> {
        let Some(root) = &self.root else { return self.create_object(path, bytes).await };
        let target = root.join(path.as_ref());
        let written = tokio::task::spawn_blocking(move || create_file(&target, &bytes)).await;
        match written.map_err(|error| self.failed(&error))? {
            Ok(created) => Ok(created),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn create_object(&self, path: &ObjectPath, bytes: Bytes) -> Result<Created, LakeError> {
        let started = Instant::now();
        loop {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let error = match self.objects.put_opts(path, bytes.clone().into(), options).await {
                Ok(_) => return Ok(Created::Yes),
                // A write that was sent twice because its first answer was lost finds itself.
                Err(error @ Error::AlreadyExists { .. }) => match self.find(path).await? {
                    Some(found) if found == bytes => return Ok(Created::Yes),
                    Some(_) => return Ok(Created::Exists),
                    // Another write of this name was under way and failed.
                    None => error,
                },
                Err(error @ Error::Generic { .. }) => error,
                Err(error) => return Err(self.failed(&error)),
            };
            if started.elapsed() >= ASK_FOR {
                return Err(self.failed(&error));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// An object's bytes; `None` where there is none.
    pub async fn find(&self, path: &ObjectPath) -> Result<Option<Bytes>, LakeError> {
        let read = async { self.objects.get(path).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    pub async fn exists(&self, path: &ObjectPath) -> Result<bool, LakeError> {
        match self.objects.head(path).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
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
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
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
