//! Object stores that keep their word, and some that do not.

use super::store::{Created, Store};
use super::tests::{archive, log_id, offsets};
use super::*;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a store does wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Each conditional write is carried out twice, and the second answer is the one that arrives.
    AnswersLost,
    /// The answer to a conditional write that was carried out is an error, every other time.
    AnswersBroken,
    /// A commit is written, and the answer is an error that is not worth another try.
    CommitsUnanswered,
    /// Conditions are not looked at.
    NoConditions,
    /// Writes are not to be seen.
    Forgets,
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn ObjectStore>,
    fault: Fault,
    writes: AtomicUsize,
}

impl Faulty {
    fn store(fault: Fault) -> Store {
        Self::over(Arc::new(InMemory::new()), fault)
    }

    fn over(inner: Arc<dyn ObjectStore>, fault: Fault) -> Store {
        let faulty = Faulty { inner, fault, writes: AtomicUsize::new(0) };
        Store::over(Arc::new(faulty), Url::parse("memory:///").unwrap())
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.fault)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &ObjectPath, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        if options.mode != PutMode::Create {
            return self.inner.put_opts(path, payload, options).await;
        }
        let nth = self.writes.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::AnswersLost => {
                // What the first answer says is not known to whoever asked.
                let _ = self.inner.put_opts(path, payload.clone(), options.clone()).await;
                self.inner.put_opts(path, payload, options).await
            }
            Fault::AnswersBroken => {
                let answer = self.inner.put_opts(path, payload, options).await;
                if nth.is_multiple_of(2) {
                    Err(Error::Generic { store: "faulty", source: "cut".into() })
                } else {
                    answer
                }
            }
            Fault::CommitsUnanswered => {
                let answer = self.inner.put_opts(path, payload, options).await?;
                if !path.as_ref().ends_with(".json") {
                    return Ok(answer);
                }
                Err(Error::PermissionDenied { path: path.to_string(), source: "cut".into() })
            }
            Fault::NoConditions => {
                self.inner.put_opts(path, payload, PutOptions { mode: PutMode::Overwrite, ..options }).await
            }
            Fault::Forgets => {
                let put = self.inner.put_opts(path, payload, options).await;
                if nth % 4 == 3 {
                    self.inner.put_opts(path, "".into(), PutOptions::default()).await?;
                }
                put
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> StoreResult<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, StoreResult<ObjectPath>>,
    ) -> BoxStream<'static, StoreResult<ObjectPath>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lets_two_writers_win_is_refused() {
    for (fault, reason) in [(Fault::NoConditions, "conditional writes"), (Fault::Forgets, "read at once")] {
        let store = Faulty::store(fault);
        let error = store.try_out().await.unwrap_err();
        assert!(matches!(error, LakeError::Unfit { .. }), "{error}");
        assert!(error.to_string().contains(reason) && error.to_string().contains("memory:///"), "{error}");
        assert!(!error.is_transient());
        assert!(store.objects().list(None).collect::<Vec<_>>().await.is_empty(), "nothing is left of the trial");
    }
    Store::in_memory().unwrap().try_out().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_was_lost_is_known_as_ones_own() {
    for fault in [Fault::AnswersLost, Fault::AnswersBroken] {
        let store = Faulty::store(fault);
        store.try_out().await.unwrap();
        let path = ObjectPath::from("a");
        assert_eq!(store.create(&path, Bytes::from("mine")).await.unwrap(), Created::Yes, "{fault:?}");
        assert_eq!(store.create(&path, Bytes::from("other")).await.unwrap(), Created::Exists, "{fault:?}");
        assert_eq!(store.find(&path).await.unwrap().unwrap(), "mine");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_survive_lost_answers() {
    for fault in [Fault::AnswersLost, Fault::AnswersBroken] {
        let store = Faulty::store(fault);
        let log = log_id();
        let open = || Lake::open_in(store.clone(), &log, 2, None);
        let (one, two) = (open().await.unwrap(), open().await.unwrap());
        one.claim(&[0]).await.unwrap();
        two.claim(&[1]).await.unwrap();
        for n in 0..5 {
            archive(&one, 0, n, n + 1).await.unwrap();
            archive(&two, 1, n, n + 1).await.unwrap();
        }
        one.refresh().await.unwrap();
        let (found, whole) = (one.table(TableName::Events).snapshot(), open().await.unwrap());
        assert_eq!(found, whole.table(TableName::Events).snapshot(), "{fault:?}");
        assert_eq!((found.files.len(), found.version), (10, 12), "each was committed once");
        assert_eq!(offsets(&whole, 0).await, (0..5).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_failed_and_arrived_is_no_other_process() {
    let log = log_id();
    let lake = Lake::open_in(Store::in_memory().unwrap(), &log, 2, None).await.unwrap();
    let (_, inner) = lake.object_store();
    let lake = Lake::open_in(Faulty::over(inner, Fault::CommitsUnanswered), &log, 2, None).await.unwrap();
    assert!(archive(&lake, 0, 0, 5).await.unwrap_err().is_transient());
    let error = archive(&lake, 0, 0, 5).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(lake.table(TableName::Events).snapshot().positions, BTreeMap::from([(0, 5)]));
    assert!(archive(&lake, 0, 5, 6).await.is_err());
    lake.refresh().await.unwrap();
    assert_eq!(offsets(&lake, 0).await, (0..6).collect::<Vec<_>>());
    let late = archive(&lake, 0, 5, 6).await.unwrap_err();
    assert!(!late.is_transient(), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_go_in_parts() {
    let store = Store::in_memory().unwrap();
    let bytes: Bytes = (0..40u32 << 20).map(|n| (n / 1000) as u8).collect::<Vec<_>>().into();
    store.put(&ObjectPath::from("large"), bytes.clone()).await.unwrap();
    assert!(store.get(&ObjectPath::from("large")).await.unwrap() == bytes);
}
