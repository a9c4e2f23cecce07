//! A table at one picture as something to plan against: Parquet files, minus the rows that no longer hold, plus the
//! rows that stand in for them.

use super::keys::Kept;
use super::pruning::{Bounds, FEW, named};
use super::users::UserFilters;
use crate::lake::picture::TableView;
use crate::lake::schema::LOOKED_UP;
use crate::lake::{FileEntry, TableName};
use async_trait::async_trait;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::provider_as_source;
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{
    Expr, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableProviderFilterPushDown, TableType, col,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use object_store::path::Path;
use std::borrow::Cow;
use std::sync::Arc;

/// The partition column of `events`: a value of the file, not a column in it.
const PARTITION_COLUMN: &str = "date";

/// Where the files of a table lie.
#[derive(Clone)]
pub struct Place {
    /// The object store, as it is registered with the runtime.
    pub store: ObjectStoreUrl,
    /// Where a file lies in that store.
    pub location: Arc<dyn Fn(&FileEntry) -> Path + Send + Sync>,
    /// How many partitions the log has that the files were folded from.
    pub partitions: u32,
    /// Tells which files may hold a user.
    pub users: Arc<UserFilters>,
}

/// One table at one picture. Planning replaces it by a UNION ALL of its parts, so that projections and filters reach
/// each of them.
#[derive(Debug)]
pub struct PictureTable {
    schema: SchemaRef,
    plan: LogicalPlan,
}

impl PictureTable {
    /// `schema` is the table's; the files have it too, but for `date` where they carry it as a partition value.
    pub fn new(table: TableName, schema: SchemaRef, view: TableView, place: &Place) -> Result<PictureTable> {
        let mut parts = Vec::new();
        let TableView { clean, dirty, replaced, rows } = view;
        // With nothing replaced the dirty files hold as they are.
        let (clean, dirty) = if replaced.is_empty() { ([clean, dirty].concat(), Vec::new()) } else { (clean, dirty) };
        if !clean.is_empty() {
            let files = Arc::new(ParquetFiles::new(table, schema.clone(), &clean, place)?);
            parts.push(LogicalPlanBuilder::scan("files", provider_as_source(files), None)?);
        }
        if !dirty.is_empty() {
            let files = Arc::new(ParquetFiles::new(table, schema.clone(), &dirty, place)?);
            let scan = LogicalPlanBuilder::scan("changed_files", provider_as_source(files), None)?;
            parts.push(match Kept::columns(table) {
                Some(columns) => {
                    let kept = ScalarUDF::new_from_impl(Kept::new(table, replaced));
                    scan.filter(kept.call(columns.iter().map(|name| col(*name)).collect()))?
                }
                None => scan,
            });
        }
        if !rows.is_empty() || parts.is_empty() {
            let rows = Arc::new(MemTable::try_new(schema.clone(), vec![rows])?);
            parts.push(LogicalPlanBuilder::scan("rows", provider_as_source(rows), None)?);
        }
        let mut parts = parts.into_iter();
        // The third branch above makes one when there is no other.
        let first = parts.next().ok_or_else(|| DataFusionError::Internal("a table without parts".to_owned()))?;
        let plan = parts.try_fold(first, |plan, part| plan.union(part.build()?))?.build()?;
        Ok(PictureTable { schema, plan })
    }

    /// What a plan gives that has the columns of `schema`.
    pub fn of_plan(schema: SchemaRef, plan: LogicalPlan) -> PictureTable {
        PictureTable { schema, plan }
    }
}

#[async_trait]
impl TableProvider for PictureTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        Some(Cow::Borrowed(&self.plan))
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut plan = LogicalPlanBuilder::from(self.plan.clone());
        if let Some(projection) = projection {
            plan = plan.select(projection.iter().copied())?;
        }
        if limit.is_some() {
            plan = plan.limit(0, limit)?;
        }
        state.create_physical_plan(&plan.build()?).await
    }
}

/// A list of Parquet files of one table.
#[derive(Debug)]
struct ParquetFiles {
    schema: SchemaRef,
    in_files: TableSchema,
    files: Vec<PartitionedFile>,
    bounds: Bounds,
    users: Arc<UserFilters>,
    store: ObjectStoreUrl,
}

impl ParquetFiles {
    fn new(table: TableName, schema: SchemaRef, files: &[FileEntry], place: &Place) -> Result<ParquetFiles> {
        let dated = files.iter().any(|file| file.date.is_some());
        let in_files = if dated {
            let (date, rest): (Vec<_>, Vec<_>) =
                schema.fields().iter().cloned().partition(|field| field.name() == PARTITION_COLUMN);
            TableSchema::builder(Arc::new(Schema::new(rest))).with_table_partition_cols(date).build()
        } else {
            TableSchema::from(schema.clone())
        };
        let bounds = Bounds::of(table, files, place.partitions);
        let files = files
            .iter()
            .map(|file| {
                let mut part = PartitionedFile::new(String::new(), file.size);
                part.object_meta.location = (place.location)(file);
                if dated {
                    part.partition_values = vec![ScalarValue::Date32(file.date)];
                }
                part
            })
            .collect();
        let users = place.users.clone();
        Ok(ParquetFiles { schema, in_files, files, bounds, users, store: place.store.clone() })
    }
}

#[async_trait]
impl TableProvider for ParquetFiles {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // They leave out files; within a file they only prune, by its statistics, and are applied above the scan.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let table = self.in_files.table_schema();
        // The scan's columns end with the partition columns; the table's need not.
        let wanted: Vec<usize> = match projection {
            Some(projection) => projection.clone(),
            None => (0..self.schema.fields().len()).collect(),
        };
        let indices = wanted
            .iter()
            .map(|index| Ok(table.index_of(self.schema.field(*index).name())?))
            .collect::<Result<Vec<usize>>>()?;
        let wanted_files = self.bounds.wanted(state, &self.schema, filters)?;
        let files = self.files.iter().zip(wanted_files).filter(|(_, wanted)| *wanted).map(|(file, _)| file.clone());
        let mut files: Vec<PartitionedFile> = files.collect();
        let runtime = state.runtime_env();
        let store = runtime.object_store(&self.store)?;
        // Footers are kept between queries: a file never changes under its name.
        let footers = runtime.cache_manager.get_file_metadata_cache();
        let mut options = state.table_options().parquet.clone();
        if let Some(users) = named(filters, LOOKED_UP).filter(|users| users.len() <= FEW) {
            let holding = self.users.holding(&users, files, &store, &footers).await;
            files = holding.files;
            // What was asked is not read again.
            options.global.bloom_filter_on_read = holding.is_partial;
        }
        let groups = FileGroup::new(files).split_files(state.config().target_partitions());
        if groups.is_empty() {
            return Ok(Arc::new(EmptyExec::new(Arc::new(self.schema.project(&wanted)?))));
        }
        let readers = CachedParquetFileReaderFactory::new(store, footers);
        let source = ParquetSource::new(self.in_files.clone())
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(Arc::new(readers));
        let scan = FileScanConfigBuilder::new(self.store.clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_projection_indices(Some(indices))?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(scan))
    }
}
