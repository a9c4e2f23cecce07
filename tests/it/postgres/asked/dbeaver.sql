-- What DBeaver (with pgjdbc) asks of a PostgreSQL server. [text]: short, or a fixed form, so this is the text that is sent. [shape]: asks
-- the same catalogs for the same columns with the same functions, operators and kinds of joins, but is written anew for this test.

-- [text] on connecting, from the driver: all digits of floats (pgjdbc: ConnectionFactoryImpl.java; from memory)
SET extra_float_digits = 3
;
-- [text] on connecting, from the driver: which window of the program this is (pgjdbc: PgConnection.java; from memory)
SET application_name = 'DBeaver 25.0.4 - Metadata <counterbat>'
;
-- [shape] the databases, the oid of each twice (model/PostgreDataSource.java)
SELECT base.oid, base.*
FROM pg_catalog.pg_database AS base
WHERE 1 = 1 AND base.datallowconn AND NOT base.datistemplate OR base.datname = 'counterbat'
ORDER BY base.datname
;
-- [text] the version shown in the connection's properties (model/PostgreDataSource.java)
SELECT version()
;
-- [text] the search path that a new session starts with (model/PostgreExecutionContext.java)
SELECT reset_val FROM pg_settings WHERE name = 'search_path'
;
-- [text] the active schema and user (model/PostgreExecutionContext.java)
SELECT current_schema(),session_user
;
-- [text] the schemas where names are looked up (model/PostgreExecutionContext.java)
SHOW search_path
;
-- [shape] the schemas with their comments (model/PostgreDatabase.java, SchemaCache)
SELECT space.oid, space.*, about.description
FROM pg_catalog.pg_namespace AS space
LEFT OUTER JOIN pg_catalog.pg_description AS about
  ON about.classoid = 'pg_namespace'::regclass AND about.objoid = space.oid AND about.objsubid = 0
ORDER BY nspname
;
-- [shape] the types, without those of tables and arrays (model/PostgreDatabase.java, cacheDataTypes)
SELECT kind.oid, kind.*, rel.relkind,
  format_type(nullif(kind.typbasetype, 0), kind.typtypmod) AS base_type_name, about.description
FROM pg_catalog.pg_type AS kind
LEFT OUTER JOIN pg_catalog.pg_type AS elem ON elem.oid = kind.typelem
LEFT OUTER JOIN pg_catalog.pg_class AS rel ON rel.oid = kind.typrelid
LEFT OUTER JOIN pg_catalog.pg_description AS about ON kind.oid = about.objoid
WHERE kind.typname IS NOT NULL
  AND (rel.relkind IS NULL OR rel.relkind = 'c')
  AND (elem.typcategory IS NULL OR elem.typcategory <> 'C')
;
-- [text] whether there are enumerated types at all: columns and no rows (PostgreUtils.java, getQueryForSystemColumnChecking)
SELECT * FROM pg_catalog.pg_enum WHERE 1<>1 LIMIT 1
;
-- [shape] the roles with their comments (model/PostgreDatabase.java, RoleCache)
SELECT who.oid, who.*, about.description
FROM pg_catalog.pg_roles AS who
LEFT JOIN pg_catalog.pg_shdescription AS about ON who.oid = about.objoid
ORDER BY who.rolname
;
-- [shape] the access methods (model/PostgreDatabase.java, AccessMethodCache)
SELECT way.oid, way.* FROM pg_catalog.pg_am AS way ORDER BY way.oid
;
-- [shape] the tablespaces (model/PostgreDatabase.java, TablespaceCache)
SELECT place.oid, place.*, pg_tablespace_location(place.oid) AS loc
FROM pg_catalog.pg_tablespace AS place
ORDER BY place.oid
;
-- [shape] the encodings (model/PostgreDatabase.java, EncodingCache)
SELECT conv.contoencoding AS encid, pg_catalog.pg_encoding_to_char(conv.contoencoding) AS encname
FROM pg_catalog.pg_conversion AS conv
GROUP BY conv.contoencoding
ORDER BY 2
;
-- [shape] the words to highlight that standard SQL lacks; the driver's list is longer (pgjdbc: PgDatabaseMetaData.java, getSQLKeywords)
SELECT string_agg(word, ',') FROM pg_catalog.pg_get_keywords() WHERE word <> ALL ('{all,and,as,"null",select,table}'::text[])
;
-- [shape] the tables, views and sequences of a schema (model/PostgreSchema.java, TableCache)
SELECT rel.oid, rel.*, about.description,
  pg_catalog.pg_get_partkeydef(rel.oid) AS partition_key,
  pg_catalog.pg_get_expr(rel.relpartbound, rel.oid) AS partition_expr
FROM pg_catalog.pg_class AS rel
LEFT OUTER JOIN pg_catalog.pg_description AS about
  ON about.classoid = 'pg_class'::regclass AND about.objoid = rel.oid AND about.objsubid = 0
WHERE rel.relkind NOT IN ('i', 'I', 'c')
  AND rel.relnamespace = (select oid from pg_catalog.pg_namespace where nspname = 'public')
;
-- [shape] how large they are (model/PostgreSchema.java, collectObjectStatistics)
SELECT rel.oid,
  pg_catalog.pg_relation_size(rel.oid) AS rel_size,
  pg_catalog.pg_total_relation_size(rel.oid) AS total_rel_size
FROM pg_class AS rel
WHERE rel.relnamespace = (select oid from pg_catalog.pg_namespace where nspname = 'public')
;
-- [shape] the columns of a table with defaults, comments and sequences (model/PostgreSchema.java, prepareChildrenStatement)
SELECT rel.relname, att.*, about.description, owned.objid,
  pg_catalog.pg_get_expr(preset.adbin, preset.adrelid, true) AS def_value
FROM pg_catalog.pg_class AS rel
INNER JOIN pg_catalog.pg_attribute AS att ON (rel.oid = att.attrelid)
LEFT OUTER JOIN pg_catalog.pg_attrdef AS preset ON (preset.adrelid = att.attrelid AND preset.adnum = att.attnum)
LEFT OUTER JOIN pg_catalog.pg_description AS about ON (about.objoid = rel.oid AND about.objsubid = att.attnum)
LEFT OUTER JOIN pg_depend AS owned ON owned.refobjid = att.attrelid AND owned.refobjsubid = att.attnum
  AND owned.deptype = 'i' AND owned.classid = owned.refclassid
WHERE rel.oid = 'public.sessions'::regclass AND rel.relkind NOT IN ('i', 'I', 'c') AND NOT att.attisdropped
ORDER BY att.attnum
;
-- [shape] the constraints of a table (model/PostgreSchema.java, ConstraintCache)
SELECT con.oid, con.*, own.relname AS tabrelname, other.relnamespace AS refnamespace, about.description,
  CASE WHEN con.contype = 'c' THEN "substring"(pg_get_constraintdef(con.oid), 7) ELSE NULL END AS consrc_copy
FROM pg_catalog.pg_constraint AS con
INNER JOIN pg_catalog.pg_class AS own ON own.oid = con.conrelid
LEFT OUTER JOIN pg_catalog.pg_class AS other ON other.oid = con.confrelid
LEFT OUTER JOIN pg_catalog.pg_description AS about
  ON about.classoid = 'pg_constraint'::regclass AND about.objoid = con.oid AND about.objsubid = 0
WHERE con.conrelid = 'public.sessions'::regclass
ORDER BY con.oid
;
-- [shape] the indexes of a table (model/PostgreSchema.java, IndexCache)
SELECT ind.*, ind.indkey AS keys,
  rel.relname, rel.relnamespace, rel.relam, rel.reltablespace, own.relname AS tabrelname, about.description,
  pg_catalog.pg_get_expr(ind.indexprs, ind.indrelid, true) AS expr,
  pg_catalog.pg_get_expr(ind.indpred, ind.indrelid) AS pred_expr,
  pg_catalog.pg_stat_get_numscans(ind.indexrelid) AS index_num_scans,
  pg_catalog.pg_relation_size(ind.indexrelid) AS index_rel_size
FROM pg_catalog.pg_index AS ind
INNER JOIN pg_catalog.pg_class AS own ON own.oid = ind.indrelid
INNER JOIN pg_catalog.pg_class AS rel ON rel.oid = ind.indexrelid
LEFT OUTER JOIN pg_catalog.pg_description AS about ON about.objoid = ind.indexrelid
WHERE ind.indrelid = 'public.sessions'::regclass
ORDER BY rel.relname
;
-- [shape] the triggers of a table (model/PostgreTableReal.java, TriggerCache)
SELECT trig.oid, trig.*, code.pronamespace AS func_schema_id, about.description
FROM pg_catalog.pg_trigger AS trig
LEFT OUTER JOIN pg_catalog.pg_proc AS code ON code.oid = trig.tgfoid
LEFT OUTER JOIN pg_catalog.pg_description AS about ON about.objoid = trig.oid AND about.objsubid = 0
WHERE NOT trig.tgisinternal AND trig.tgrelid = 'public.sessions'::regclass
;
-- [shape] the tables that a table inherits from, two tables with a comma (model/PostgreTable.java, initSuperTables)
SELECT heir.*, rel.relnamespace
FROM pg_catalog.pg_inherits AS heir, pg_catalog.pg_class AS rel
WHERE rel.oid = heir.inhparent AND heir.inhrelid = 'public.sessions'::regclass
ORDER BY heir.inhseqno
;
-- [shape] what depends on a table: a join of many catalogs with a text of each kind (model/PostgreDependency.java)
SELECT DISTINCT dep.deptype, dep.classid, dep.objid, rel.relkind, att.attname,
  pg_get_expr(preset.adbin, preset.adrelid) AS adefval,
  CASE
    WHEN rel.relkind IS NOT NULL THEN rel.relkind::text || COALESCE(dep.objsubid::text, '')::text
    WHEN kind.oid IS NOT NULL THEN 'y'::text
    WHEN code.oid IS NOT NULL THEN 'p'::text
    WHEN way.oid IS NOT NULL THEN 'R'::text
    WHEN con.oid IS NOT NULL THEN 'C'::text || contype::text
    WHEN preset.oid IS NOT NULL THEN 'A'::text
    ELSE ''
  END AS type,
  COALESCE(rel.relname, con.conname, code.proname, kind.typname, way.rulename) AS refname
FROM pg_depend AS dep
LEFT JOIN pg_class AS rel ON rel.oid = dep.objid
LEFT JOIN pg_type AS kind ON kind.oid = dep.objid
LEFT JOIN pg_proc AS code ON code.oid = dep.objid
LEFT JOIN pg_rewrite AS way ON way.oid = dep.objid
LEFT JOIN pg_constraint AS con ON con.oid = dep.objid
LEFT JOIN pg_attrdef AS preset ON preset.oid = dep.objid
LEFT JOIN pg_attribute AS att ON att.attrelid = preset.adrelid AND att.attnum = preset.adnum
WHERE dep.refobjid = 'public.sessions'::regclass
ORDER BY type
;
-- [shape] the text of a view (model/PostgreViewBase.java; from memory)
SELECT pg_catalog.pg_get_viewdef((select oid from pg_catalog.pg_class where relname = 'usage_daily'), true)
;
-- [shape] the first page of a table's rows (org.jkiss.dbeaver.model: JDBCTable.java; from memory)
SELECT s.* FROM public.sessions s LIMIT 200
;
