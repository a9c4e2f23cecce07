//! Which files may hold rows of a user: told by the Bloom filters that lie in them, which are kept between queries.

use crate::lake::schema::LOOKED_UP;
use datafusion::common::Result;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use futures::{StreamExt, stream};
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::bloom_filter::Sbbf;
use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, Weighter};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Filters kept at most, in bytes; a filter has 10 to 20 bits for each user of its file.
const KEPT_BYTES: u64 = 64 << 20;
const TYPICAL_BYTES: u64 = 16 << 10;
/// What is kept is divided by so many, none of which keeps a file whose filters take more than its part.
const SHARDS: usize = 4;
/// Files whose filters are read at the same time.
const AT_ONCE: usize = 8;
/// Files whose filters are read for one query: beyond that each is opened, and asked then.
const MOST_READ: usize = 256;

/// The filters of a file, one for each row group; `None` where it has not one for each.
type Filters = Option<Arc<[Sbbf]>>;

#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<Path, Filters> for Bytes {
    fn weight(&self, path: &Path, filters: &Filters) -> u64 {
        let blocks: usize = filters.iter().flat_map(|filters| filters.iter()).map(Sbbf::num_blocks).sum();
        // Blocks of 256 bits; a file without filters takes room for its name.
        (blocks * 32 + path.as_ref().len() + size_of::<Filters>()) as u64
    }
}

/// The Bloom filters of the files that were asked for last. A file never changes under its name.
#[derive(Debug)]
pub struct UserFilters {
    kept: Cache<Path, Filters, Bytes>,
}

/// What the filters tell.
pub(super) struct Holding {
    /// Files that may hold a wanted row, in their order.
    pub files: Vec<PartitionedFile>,
    /// Whether some of them were not asked.
    pub is_partial: bool,
}

impl UserFilters {
    /// None are known yet.
    pub fn empty() -> UserFilters {
        let mut options = OptionsBuilder::new();
        options.estimated_items_capacity((KEPT_BYTES / TYPICAL_BYTES) as usize).weight_capacity(KEPT_BYTES);
        // Only what is told above can be missing.
        let options = options.shards(SHARDS).build().expect("both capacities");
        let (hasher, lifecycle) = Default::default();
        UserFilters { kept: Cache::with_options(options, Bytes, hasher, lifecycle) }
    }

    /// Of `files` those that may hold a row of one of `users`.
    pub(super) async fn holding(
        &self,
        users: &[&str],
        files: Vec<PartitionedFile>,
        store: &dyn ObjectStore,
        footers: &Arc<FileMetadataCache>,
    ) -> Holding {
        let read = AtomicUsize::new(0);
        let held = files.into_iter().map(|file| {
            let read = &read;
            async move {
                let path = &file.object_meta.location;
                let filters = match self.kept.get(path) {
                    Some(filters) => filters,
                    None if read.fetch_add(1, Ordering::Relaxed) >= MOST_READ => None,
                    // Of a file that cannot be read, reading its rows will tell.
                    None => self.kept.get_or_insert_async(path, filters(&file, store, footers)).await.ok().flatten(),
                };
                let may_hold = filters
                    .is_none_or(|filters| filters.iter().any(|filter| users.iter().any(|user| filter.check(*user))));
                may_hold.then_some(file)
            }
        });
        let files = stream::iter(held).buffered(AT_ONCE).filter_map(std::future::ready).collect().await;
        Holding { files, is_partial: read.into_inner() > MOST_READ }
    }
}

/// The filters of a file as they lie in it.
async fn filters(file: &PartitionedFile, store: &dyn ObjectStore, footers: &Arc<FileMetadataCache>) -> Result<Filters> {
    let footer = DFParquetMetadata::new(store, &file.object_meta).with_file_metadata_cache(Some(footers.clone()));
    let footer = footer.fetch_metadata().await?;
    let columns = footer.file_metadata().schema_descr().columns();
    let Some(column) = columns.iter().position(|column| column.name() == LOOKED_UP) else { return Ok(None) };
    let ranges: Option<Vec<_>> = footer
        .row_groups()
        .iter()
        .map(|group| {
            let column = group.column(column);
            let start = u64::try_from(column.bloom_filter_offset()?).ok()?;
            Some(start..start + u64::try_from(column.bloom_filter_length()?).ok()?)
        })
        .collect();
    let Some(ranges) = ranges else { return Ok(None) };
    let bytes = store.get_ranges(&file.object_meta.location, &ranges).await?;
    let filters = bytes.iter().map(|bytes| Sbbf::from_bytes(bytes)).collect::<Result<Arc<[Sbbf]>, _>>()?;
    // One of no bits cannot be asked.
    Ok(Some(filters).filter(|filters| filters.iter().all(|filter| filter.num_blocks() > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{RecordBatch, StringArray};
    use datafusion::execution::runtime_env::RuntimeEnv;
    use object_store::local::LocalFileSystem;
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::WriterProperties;
    use std::path::Path as FilePath;

    fn write(dir: &FilePath, name: &str, users: &[&str], filters: bool) -> PartitionedFile {
        let column = Arc::new(StringArray::from(users.to_vec()));
        let batch = RecordBatch::try_from_iter([(LOOKED_UP, column as _)]).unwrap();
        let properties =
            WriterProperties::builder().set_bloom_filter_enabled(filters).set_max_row_group_row_count(Some(2)).build();
        let file = std::fs::File::create(dir.join(name)).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        PartitionedFile::new(name, dir.join(name).metadata().unwrap().len())
    }

    #[tokio::test]
    async fn files_without_a_user_are_left_out_and_others_never() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalFileSystem::new_with_prefix(dir.path()).unwrap();
        let files = vec![
            write(dir.path(), "one", &["ann", "bob", "eve"], true),
            write(dir.path(), "two", &["bob"], true),
            write(dir.path(), "silent", &["bob"], false),
            PartitionedFile::new("gone", 100),
        ];
        let footers = RuntimeEnv::default().cache_manager.get_file_metadata_cache();
        let known = UserFilters::empty();
        // Once from the files, then from what is kept.
        for gone in [false, true] {
            for (users, wanted) in [
                (&["eve"][..], vec!["one", "silent", "gone"]),
                (&["bob"], vec!["one", "two", "silent", "gone"]),
                (&["nobody"], vec!["silent", "gone"]),
                (&["nobody", "bob"], vec!["one", "two", "silent", "gone"]),
                (&[], vec!["silent", "gone"]),
            ] {
                let held = known.holding(users, files.clone(), &store, &footers).await;
                let names: Vec<&str> = held.files.iter().map(|file| file.object_meta.location.as_ref()).collect();
                assert_eq!((names, held.is_partial), (wanted, false), "{users:?}, {gone}");
            }
            files
                .iter()
                .for_each(|file| drop(std::fs::remove_file(dir.path().join(file.object_meta.location.as_ref()))));
            footers.clear();
        }
    }

    #[tokio::test]
    async fn only_so_many_are_read_for_one_query() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalFileSystem::new_with_prefix(dir.path()).unwrap();
        let files: Vec<_> = (0..MOST_READ + 3).map(|n| write(dir.path(), &format!("{n}"), &["bob"], true)).collect();
        let footers = RuntimeEnv::default().cache_manager.get_file_metadata_cache();
        let known = UserFilters::empty();
        let first = known.holding(&["eve"], files.clone(), &store, &footers).await;
        assert_eq!((first.files.len(), first.is_partial), (3, true));
        let second = known.holding(&["eve"], files, &store, &footers).await;
        assert_eq!((second.files.len(), second.is_partial), (0, false));
    }
}
