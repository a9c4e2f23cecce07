//! Trying out an object store: commits are safe only where of several writers of a new name one alone succeeds.

use super::LakeError;
use super::store::{Created, Store};
use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutMode, PutOptions};

const ROUNDS: usize = 3;
/// Who write the same name at the same time.
const WRITERS: usize = 4;

impl Store {
    /// Has several writers create one object at the same time, a few times: [`LakeError::Unfit`] when more than one
    /// succeeds, or when what was written cannot be read at once.
    pub(super) async fn try_out(&self) -> Result<(), LakeError> {
        for _ in 0..ROUNDS {
            let path = ObjectPath::from(format!("_probe/{}", uuid::Uuid::now_v7()));
            let fit = self.race(&path).await;
            // A store that cannot be reached is not waited for twice.
            if !matches!(fit, Err(LakeError::Store { .. })) {
                self.delete(&path).await?;
            }
            fit?;
        }
        Ok(())
    }

    async fn race(&self, path: &ObjectPath) -> Result<(), LakeError> {
        let unfit = |reason: &str| Err(LakeError::Unfit { place: self.place(), reason: reason.to_owned() });
        let bytes = |n: usize| Bytes::from(format!("{path} {n}"));
        let writes = futures::future::join_all((0..WRITERS).map(|n| self.create(path, bytes(n)))).await;
        let mut winners = Vec::new();
        for (n, created) in writes.into_iter().enumerate() {
            if created? == Created::Yes {
                winners.push(n);
            }
        }
        // One that comes later must not succeed either.
        let objects = self.objects();
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let late = objects.put_opts(path, Bytes::from("late").into(), options).await;
        if winners.len() > 1 || late.is_ok() {
            return unfit(
                "it lets several writers create the same object, so that commits would be lost; it has to support \
                 conditional writes (If-None-Match)",
            );
        }
        let read = async { objects.get(path).await?.bytes().await };
        match (winners.as_slice(), read.await) {
            ([winner], Ok(found)) if found == bytes(*winner) => Ok(()),
            (_, Err(error)) if !matches!(error, object_store::Error::NotFound { .. }) => Err(self.failed(&error)),
            _ => unfit("what was written to it is not what is read at once"),
        }
    }
}
