//! An object store that fails, or whose process is gone, from one of its changes on.

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// What becomes of a change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    Made,
    /// It is made, and then it is decided once more, before whoever made it hears of it.
    MadeUnheard,
    Refused,
    /// The process is gone before it, or right after it: nothing is changed any more.
    GoneBefore,
    GoneAfter,
    /// It takes until it is let go; others are made meanwhile.
    Held,
}

/// By the number of a change, from 0 on, whether it is a removal, and the path.
type Decide = Box<dyn Fn(usize, bool, &ObjectPath) -> Fate + Send + Sync>;

struct Inner {
    objects: Arc<InMemory>,
    decide: Decide,
    changes: AtomicUsize,
    is_gone: AtomicBool,
    gone: Notify,
    let_go: Notify,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Fated(Arc<Inner>);

impl Fated {
    pub fn over(
        objects: &Arc<InMemory>,
        decide: impl Fn(usize, bool, &ObjectPath) -> Fate + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            objects: objects.clone(),
            decide: Box::new(decide),
            changes: AtomicUsize::new(0),
            is_gone: AtomicBool::new(false),
            gone: Notify::new(),
            let_go: Notify::new(),
        }))
    }

    /// How many changes were made, or tried.
    pub fn changes(&self) -> usize {
        self.0.changes.load(Ordering::SeqCst)
    }

    /// Waits until the process counts as gone, or a change is held.
    pub async fn gone(&self) {
        self.0.gone.notified().await;
    }

    /// Lets a change be made that is held.
    pub fn let_go(&self) {
        self.0.let_go.notify_one();
    }

    async fn change<T>(
        &self,
        removes: bool,
        path: &ObjectPath,
        make: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        let inner = &self.0;
        if inner.is_gone.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let number = inner.changes.fetch_add(1, Ordering::SeqCst);
        match (inner.decide)(number, removes, path) {
            Fate::Made => return make.await,
            Fate::MadeUnheard => {
                let made = make.await;
                (inner.decide)(number, removes, path);
                return made;
            }
            Fate::Refused => {
                return Err(Error::PermissionDenied { path: path.to_string(), source: "for now".into() });
            }
            Fate::Held => {
                inner.gone.notify_one();
                inner.let_go.notified().await;
                return make.await;
            }
            Fate::GoneBefore => inner.is_gone.store(true, Ordering::SeqCst),
            Fate::GoneAfter => {
                inner.is_gone.store(true, Ordering::SeqCst);
                make.await?;
            }
        }
        inner.gone.notify_one();
        std::future::pending().await
    }
}

impl fmt::Debug for Fated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fated")
    }
}

impl fmt::Display for Fated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fated")
    }
}

#[async_trait]
impl ObjectStore for Fated {
    async fn put_opts(&self, path: &ObjectPath, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.change(false, path, self.0.objects.put_opts(path, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.0.objects.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> StoreResult<GetResult> {
        self.0.objects.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, StoreResult<ObjectPath>>,
    ) -> BoxStream<'static, StoreResult<ObjectPath>> {
        let this = self.clone();
        let delete = move |path: ObjectPath| {
            let this = this.clone();
            async move {
                this.change(true, &path, this.0.objects.delete(&path)).await?;
                Ok(path)
            }
        };
        paths.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.0.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> StoreResult<ListResult> {
        self.0.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> StoreResult<()> {
        self.0.objects.copy_opts(from, to, options).await
    }
}

/// The paths of a store.
pub async fn paths(objects: &InMemory) -> Vec<String> {
    let listed: Vec<_> = objects.list(None).try_collect().await.unwrap();
    listed.into_iter().map(|object| object.location.to_string()).collect()
}

/// A store of its own with the same objects.
pub async fn copy(objects: &InMemory) -> Arc<InMemory> {
    let copy = InMemory::new();
    for path in paths(objects).await {
        let path = ObjectPath::from(path);
        let bytes = objects.get(&path).await.unwrap().bytes().await.unwrap();
        copy.put(&path, bytes.into()).await.unwrap();
    }
    Arc::new(copy)
}
