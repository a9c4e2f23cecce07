-- What Metabase (with pgjdbc) asks of a PostgreSQL server. [text]: short, or a fixed form, so this is the text that is sent. [shape]: asks
-- the same catalogs for the same columns with the same functions, operators and kinds of joins, but is written anew for this test.

-- [text] on connecting, from the driver (pgjdbc: ConnectionFactoryImpl.java; from memory)
SET extra_float_digits = 3
;
-- [text] on connecting, from the driver (pgjdbc: PgConnection.java, getTransactionIsolation; from memory)
SHOW TRANSACTION ISOLATION LEVEL
;
-- [text] whether the connection works (src/metabase/driver/sql_jdbc/connection.clj; from memory)
SELECT 1
;
-- [text] the time zone of the database (src/metabase/driver/postgres.clj, db-default-timezone)
show timezone;
;
-- [text] the time zone of the reports (src/metabase/driver/postgres.clj, set-timezone-sql)
SET SESSION TIMEZONE TO 'UTC';
;
-- [shape] the schemas (pgjdbc: PgDatabaseMetaData.java, getSchemas)
SELECT current_database() AS "TABLE_CATALOG", nspname AS "TABLE_SCHEM"
FROM pg_catalog.pg_namespace
WHERE nspname <> 'pg_toast'
  AND (nspname = (pg_catalog.current_schemas(true))[1] OR nspname !~ '^pg_temp_')
  AND (nspname = replace((pg_catalog.current_schemas(true))[1], 'pg_temp_', 'pg_toast_temp_') OR nspname !~ '^pg_toast_temp_')
ORDER BY "TABLE_SCHEM"
;
-- [shape] the tables and views with comments and about how many rows (src/metabase/driver/postgres.clj, get-tables-sql)
SELECT "space"."nspname" AS "schema", "rel"."relname" AS "name",
  CASE "rel"."relkind" WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
    WHEN 'p' THEN 'PARTITIONED TABLE' WHEN 'f' THEN 'FOREIGN TABLE' ELSE NULL END AS "type",
  "about"."description" AS "description", "live"."n_live_tup" AS "estimated_row_count"
FROM "pg_catalog"."pg_class" AS "rel"
INNER JOIN "pg_catalog"."pg_namespace" AS "space" ON "space"."oid" = "rel"."relnamespace"
LEFT JOIN "pg_catalog"."pg_description" AS "about"
  ON ("about"."objoid" = "rel"."oid") AND ("about"."objsubid" = 0) AND ("about"."classoid" = 'pg_class'::regclass)
LEFT JOIN "pg_stat_user_tables" AS "live"
  ON ("live"."schemaname" = "space"."nspname") AND ("live"."relname" = "rel"."relname")
WHERE ("space"."nspname" !~ '^pg_') AND ("space"."nspname" <> 'information_schema')
  AND "rel".relkind in ('f', 'm', 'p', 'r', 'v') AND ("space"."nspname" IN ('public'))
ORDER BY "type" ASC, "schema" ASC, "name" ASC
;
-- [shape] what the user may do with each table (src/metabase/driver/postgres.clj, current-user-table-privileges)
with rights as (
  select NULL as role, named.schemaname as schema, named.objectname as table,
    pg_catalog.has_any_column_privilege(current_user, '"' || replace(named.schemaname, '"', '""') || '"."' || replace(named.objectname, '"', '""') || '"', 'select') as select,
    pg_catalog.has_any_column_privilege(current_user, '"' || replace(named.schemaname, '"', '""') || '"."' || replace(named.objectname, '"', '""') || '"', 'update') as update,
    pg_catalog.has_any_column_privilege(current_user, '"' || replace(named.schemaname, '"', '""') || '"."' || replace(named.objectname, '"', '""') || '"', 'insert') as insert,
    pg_catalog.has_table_privilege(current_user, '"' || replace(named.schemaname, '"', '""') || '"."' || replace(named.objectname, '"', '""') || '"', 'delete') as delete
  from (
    select schemaname, viewname as objectname from pg_catalog.pg_views
    union
    select schemaname, tablename as objectname from pg_catalog.pg_tables
    union
    select schemaname, matviewname as objectname from pg_catalog.pg_matviews
  ) named
  where pg_catalog.has_schema_privilege(current_user, named.schemaname, 'usage')
    and named.schemaname <> 'information_schema' and named.schemaname !~ '^pg_'
)
select rights.* from rights
;
-- [shape] the columns of the tables, then those of materialized views (src/metabase/driver/postgres.clj, describe-fields-sql)
SELECT "col"."column_name" AS "name",
  CASE WHEN "col"."udt_schema" IN ('public', 'pg_catalog') THEN FORMAT('%s', "col"."udt_name")
    ELSE FORMAT('"%s"."%s"', "col"."udt_schema", "col"."udt_name") END AS "database-type",
  "col"."ordinal_position" - 1 AS "database-position",
  "col"."table_schema" AS "table-schema", "col"."table_name" AS "table-name",
  "key"."column_name" IS NOT NULL AS "pk?",
  COL_DESCRIPTION(CAST(CAST(FORMAT('%I.%I', CAST("col"."table_schema" AS TEXT), CAST("col"."table_name" AS TEXT)) AS REGCLASS) AS OID), "col"."ordinal_position") AS "field-comment",
  (("column_default" IS NULL) OR (LOWER("column_default") = 'null')) AND ("is_nullable" = 'NO')
    AND NOT ((("column_default" IS NOT NULL) AND ("column_default" LIKE '%nextval(%')) OR ("is_identity" <> 'NO')) AS "database-required",
  (("column_default" IS NOT NULL) AND ("column_default" LIKE '%nextval(%')) OR ("is_identity" <> 'NO') AS "database-is-auto-increment"
FROM "information_schema"."columns" AS "col"
LEFT JOIN (
  SELECT "has"."table_schema", "has"."table_name", "uses"."column_name"
  FROM "information_schema"."table_constraints" AS "has"
  INNER JOIN "information_schema"."key_column_usage" AS "uses"
    ON ("uses"."constraint_name" = "has"."constraint_name") AND ("uses"."table_schema" = "has"."table_schema") AND ("uses"."table_name" = "has"."table_name")
  WHERE "has"."constraint_type" = 'PRIMARY KEY'
) AS "key" ON ("key"."table_schema" = "col"."table_schema") AND ("key"."table_name" = "col"."table_name") AND ("key"."column_name" = "col"."column_name")
WHERE "col".table_schema !~ '^information_schema|catalog_history|pg_' AND ("col"."table_schema" IN ('public'))
UNION ALL
SELECT "att"."attname" AS "name",
  CASE WHEN "cls"."nspname" IN ('public', 'pg_catalog') THEN FORMAT('%s', "kind"."typname")
    ELSE FORMAT('"%s"."%s"', "cls"."nspname", "kind"."typname") END AS "database-type",
  "att"."attnum" - 1 AS "database-position", "space"."nspname" AS "table-schema", "rel"."relname" AS "table-name",
  FALSE AS "pk?", NULL AS "field-comment", FALSE AS "database-required", FALSE AS "database-is-auto-increment"
FROM "pg_catalog"."pg_class" AS "rel"
INNER JOIN "pg_catalog"."pg_namespace" AS "space" ON "rel"."relnamespace" = "space"."oid"
INNER JOIN "pg_catalog"."pg_attribute" AS "att" ON "rel"."oid" = "att"."attrelid"
INNER JOIN "pg_catalog"."pg_type" AS "kind" ON "att"."atttypid" = "kind"."oid"
INNER JOIN "pg_catalog"."pg_namespace" AS "cls" ON "kind"."typnamespace" = "cls"."oid"
WHERE ("rel"."relkind" = 'm') AND ("att"."attnum" >= 1) AND ("space"."nspname" IN ('public'))
ORDER BY "table-schema" ASC, "table-name" ASC, "database-position" ASC
;
-- [shape] the foreign keys (src/metabase/driver/postgres.clj, describe-fks-sql)
SELECT "here"."nspname" AS "fk-table-schema", "src"."relname" AS "fk-table-name", "own"."attname" AS "fk-column-name",
  "there"."nspname" AS "pk-table-schema", "dst"."relname" AS "pk-table-name", "other"."attname" AS "pk-column-name"
FROM "pg_constraint" AS "con"
INNER JOIN "pg_class" AS "src" ON "src"."oid" = "con"."conrelid"
INNER JOIN "pg_namespace" AS "here" ON "here"."oid" = "con"."connamespace"
INNER JOIN "pg_attribute" AS "own" ON "own"."attrelid" = "con"."conrelid"
INNER JOIN "pg_class" AS "dst" ON "dst"."oid" = "con"."confrelid"
INNER JOIN "pg_namespace" AS "there" ON "there"."oid" = "dst"."relnamespace"
INNER JOIN "pg_attribute" AS "other" ON "other"."attrelid" = "con"."confrelid"
WHERE "here".nspname !~ '^information_schema|catalog_history|pg_' AND ("con"."contype" = 'f'::char)
  AND ("own"."attnum" = ANY("con".conkey)) AND ("other"."attnum" = ANY("con".confkey)) AND ("here"."nspname" IN ('public'))
ORDER BY "fk-table-schema" ASC, "fk-table-name" ASC
;
-- [shape] the columns that indexes begin with (src/metabase/driver/postgres.clj, describe-indexes-sql)
SELECT "one"."table-schema", "one"."table-name",
  TRIM(BOTH '"' FROM PG_CATALOG.PG_GET_INDEXDEF("one"."ind_oid", "one"."pos", FALSE)) AS "field-name"
FROM (
  SELECT "space"."nspname" AS "table-schema", "own"."relname" AS "table-name", "rel"."oid" AS "ind_oid",
    (INFORMATION_SCHEMA._PG_EXPANDARRAY("ind"."indkey")).n AS "pos"
  FROM "pg_catalog"."pg_class" AS "own"
  INNER JOIN "pg_catalog"."pg_namespace" AS "space" ON "space"."oid" = "own"."relnamespace"
  INNER JOIN "pg_catalog"."pg_index" AS "ind" ON "ind"."indrelid" = "own"."oid"
  INNER JOIN "pg_catalog"."pg_class" AS "rel" ON "rel"."oid" = "ind"."indexrelid"
  WHERE PG_CATALOG.PG_GET_EXPR("ind"."indpred", "ind"."indrelid") IS NULL
    AND "space".nspname !~ '^information_schema|catalog_history|pg_' AND ("space"."nspname" IN ('public'))
) AS "one"
WHERE "one"."pos" = 1
;
-- [shape] the enumerated types (src/metabase/driver/postgres.clj, enum-types)
SELECT nspname, typname
FROM pg_namespace AS space JOIN pg_type AS kind ON kind.typnamespace = space.oid
WHERE kind.oid IN (SELECT DISTINCT enumtypid FROM pg_enum AS lab)
;
-- [shape] a table, where Metabase asks the driver: a case of a condition with cases in it (pgjdbc: PgDatabaseMetaData.java, getTables)
SELECT current_database() AS "TABLE_CAT", space.nspname AS "TABLE_SCHEM", rel.relname AS "TABLE_NAME",
  CASE space.nspname = 'information_schema' OR space.nspname ~ '^pg_'
    WHEN true THEN CASE
      WHEN space.nspname = 'information_schema' OR space.nspname = 'pg_catalog'
        THEN CASE rel.relkind WHEN 'v' THEN 'SYSTEM VIEW' WHEN 'r' THEN 'SYSTEM TABLE' ELSE NULL END
      ELSE CASE rel.relkind WHEN 'v' THEN 'TEMPORARY VIEW' WHEN 'r' THEN 'TEMPORARY TABLE' ELSE NULL END
    END
    WHEN false THEN CASE rel.relkind WHEN 'v' THEN 'VIEW' WHEN 'r' THEN 'TABLE' WHEN 'i' THEN 'INDEX' WHEN 'S' THEN 'SEQUENCE' ELSE NULL END
    ELSE NULL
  END AS "TABLE_TYPE",
  about.description AS "REMARKS", '' AS "TYPE_CAT", '' AS "REF_GENERATION"
FROM pg_catalog.pg_namespace space, pg_catalog.pg_class rel
LEFT JOIN pg_catalog.pg_description about ON (about.objoid = rel.oid AND about.objsubid = 0 AND about.classoid = 'pg_class'::regclass)
WHERE space.oid = rel.relnamespace AND space.nspname LIKE 'public' AND rel.relname LIKE 'sessions'
  AND (false OR (rel.relkind = 'r' AND space.nspname <> 'information_schema' AND space.nspname !~ '^pg_')
    OR (rel.relkind = 'v' AND space.nspname <> 'information_schema' AND space.nspname <> 'pg_catalog'))
ORDER BY "TABLE_TYPE","TABLE_SCHEM","TABLE_NAME"
;
-- [shape] its columns, numbered anew without those that were dropped (pgjdbc: PgDatabaseMetaData.java, getColumns)
SELECT * FROM (
  SELECT current_database() AS current_database, space.nspname, rel.relname, att.attname, att.atttypid,
    att.attnotnull OR (kind.typtype = 'd' AND kind.typnotnull) AS attnotnull, att.atttypmod, att.attlen, kind.typtypmod,
    row_number() OVER (PARTITION BY att.attrelid ORDER BY att.attnum) AS attnum,
    nullif(att.attidentity, '') AS attidentity, nullif(att.attgenerated, '') AS attgenerated,
    pg_catalog.pg_get_expr(preset.adbin, preset.adrelid) AS adsrc, about.description, kind.typbasetype, kind.typtype
  FROM pg_catalog.pg_class rel
  JOIN pg_catalog.pg_namespace space ON (space.oid = rel.relnamespace)
  JOIN pg_catalog.pg_attribute att ON (rel.oid = att.attrelid)
  JOIN pg_catalog.pg_type kind ON (kind.oid = att.atttypid)
  LEFT JOIN pg_catalog.pg_attrdef preset ON (preset.adrelid = att.attrelid AND preset.adnum = att.attnum)
  LEFT JOIN pg_catalog.pg_description about ON (about.objoid = rel.oid AND about.objsubid = att.attnum)
  LEFT JOIN pg_catalog.pg_class cls ON (about.classoid = cls.oid AND cls.relname = 'pg_class')
  LEFT JOIN pg_catalog.pg_namespace home ON (home.oid = cls.relnamespace AND home.nspname = 'pg_catalog')
  WHERE NOT att.attisdropped AND att.attnum > 0 AND rel.relkind IN ('r', 'p', 'v', 'f', 'm')
    AND space.nspname LIKE 'public' AND rel.relname LIKE 'sessions'
) found
WHERE true AND attname LIKE '%'
ORDER BY nspname, found.relname, attnum
;
-- [shape] its primary key: a member of a composite value that a function gives (pgjdbc: PgDatabaseMetaData.java, getPrimaryKeys)
SELECT pair.TABLE_SCHEM AS "TABLE_SCHEM", pair.TABLE_NAME AS "TABLE_NAME", pair.COLUMN_NAME AS "COLUMN_NAME",
  pair.KEY_SEQ AS "KEY_SEQ", pair.PK_NAME AS "PK_NAME"
FROM (
  SELECT space.nspname AS TABLE_SCHEM, own.relname AS TABLE_NAME, att.attname AS COLUMN_NAME, rel.relname AS PK_NAME,
    information_schema._pg_expandarray(ind.indkey) AS KEYS, (information_schema._pg_expandarray(ind.indkey)).n AS KEY_SEQ,
    att.attnum AS A_ATTNUM, ind.indnkeyatts AS KEY_COUNT
  FROM pg_catalog.pg_class own
  JOIN pg_catalog.pg_namespace space ON (space.oid = own.relnamespace)
  JOIN pg_catalog.pg_attribute att ON (att.attrelid = own.oid)
  JOIN pg_catalog.pg_index ind ON (ind.indrelid = att.attrelid)
  JOIN pg_catalog.pg_class rel ON (rel.oid = ind.indexrelid)
  WHERE ind.indisprimary AND space.nspname = 'public' AND own.relname = 'sessions'
) pair
WHERE (pair.KEYS).x = pair.A_ATTNUM AND pair.KEY_SEQ <= KEY_COUNT
ORDER BY pair.table_name, pair.pk_name, pair.key_seq
;
-- [shape] its foreign keys: eight tables with commas and members of arrays (pgjdbc: PgDatabaseMetaData.java, getImportedKeys)
SELECT there.nspname AS "PKTABLE_SCHEM", goal.relname AS "PKTABLE_NAME", other.attname AS "PKCOLUMN_NAME",
  here.nspname AS "FKTABLE_SCHEM", ref.relname AS "FKTABLE_NAME", own.attname AS "FKCOLUMN_NAME", place.n AS "KEY_SEQ",
  CASE con.confupdtype WHEN 'a' THEN 3 WHEN 'c' THEN 0 WHEN 'n' THEN 2 WHEN 'd' THEN 4 WHEN 'r' THEN 1 ELSE NULL END AS "UPDATE_RULE",
  con.conname AS "FK_NAME", ind.relname AS "PK_NAME",
  CASE WHEN con.condeferrable AND con.condeferred THEN 5 WHEN con.condeferrable THEN 6 ELSE 7 END AS "DEFERRABILITY"
FROM pg_catalog.pg_constraint con, pg_catalog.generate_series(1, 32) place(n), pg_catalog.pg_class ind,
  pg_catalog.pg_namespace here, pg_catalog.pg_class ref, pg_catalog.pg_attribute own,
  pg_catalog.pg_namespace there, pg_catalog.pg_class goal, pg_catalog.pg_attribute other
WHERE con.contype = 'f' AND ind.oid = con.conindid
  AND con.conrelid = ref.oid AND here.oid = ref.relnamespace AND own.attrelid = ref.oid AND own.attnum = con.conkey[place.n]
  AND con.confrelid = goal.oid AND there.oid = goal.relnamespace AND other.attrelid = goal.oid AND other.attnum = con.confkey[place.n]
  AND here.nspname = 'public' AND ref.relname = 'sessions'
ORDER BY there.nspname, goal.relname, con.conname, place.n
;
-- [shape] what a type is that the driver does not know: places in the search path (pgjdbc: TypeInfoCache.java)
SELECT typinput = 'pg_catalog.array_in'::regproc AS is_array, typtype, typname, pg_type.oid
FROM pg_catalog.pg_type
LEFT JOIN (
  SELECT space.oid AS spaceoid, space.nspname, placed.r
  FROM pg_namespace AS space
  JOIN (
    SELECT step.r, (current_schemas(false))[step.r] AS nspname
    FROM generate_series(1, array_upper(current_schemas(false), 1)) AS step(r)
  ) AS placed USING (nspname)
) AS pth ON pth.spaceoid = typnamespace
WHERE pg_type.oid = 1184
ORDER BY pth.r, pg_type.oid DESC
;
-- [text] how many columns a key has at most (pgjdbc: PgDatabaseMetaData.java, getMaxIndexKeys)
SELECT setting FROM pg_catalog.pg_settings WHERE name='max_index_keys'
;
-- [shape] a sample of rows to learn what the columns hold, texts cut short (src/metabase/driver/sql_jdbc.clj, table-rows-sample; from memory)
SELECT SUBSTRING("public"."sessions"."account", 1, 1234) AS "account", "public"."sessions"."opened_at" AS "opened_at", "public"."sessions"."cost" AS "cost", "public"."sessions"."inbound" AS "inbound"
FROM "public"."sessions"
LIMIT 10000
;
-- [shape] the values of a column for a filter's list (src/metabase/driver/sql/query_processor.clj; from memory)
SELECT "public"."sessions"."account" AS "account"
FROM "public"."sessions"
GROUP BY "public"."sessions"."account"
ORDER BY "public"."sessions"."account" ASC
LIMIT 1001
;
-- [shape] sessions a day of the last 30 days (src/metabase/driver/postgres.clj, date and add-interval)
SELECT CAST("public"."sessions"."opened_at" AS date) AS "opened_at", COUNT(*) AS "count"
FROM "public"."sessions"
WHERE ("public"."sessions"."opened_at" >= CAST((NOW() + INTERVAL '-30 day') AS date)) AND ("public"."sessions"."opened_at" < CAST(NOW() AS date))
GROUP BY CAST("public"."sessions"."opened_at" AS date)
ORDER BY CAST("public"."sessions"."opened_at" AS date) ASC
;
-- [shape] sums by week, weeks that begin on Sunday (src/metabase/driver/postgres.clj, adjust-start-of-week)
SELECT (DATE_TRUNC('week', ("public"."sessions"."opened_at" + INTERVAL '1 day')) + INTERVAL '-1 day') AS "opened_at", SUM("public"."sessions"."cost") AS "sum"
FROM "public"."sessions"
WHERE "public"."sessions"."opened_at" >= timestamp with time zone '2026-02-01 00:00:00.000Z'
GROUP BY (DATE_TRUNC('week', ("public"."sessions"."opened_at" + INTERVAL '1 day')) + INTERVAL '-1 day')
ORDER BY (DATE_TRUNC('week', ("public"."sessions"."opened_at" + INTERVAL '1 day')) + INTERVAL '-1 day') ASC
;
-- [shape] averages and medians by day of the week (src/metabase/driver/postgres.clj, day-of-week and median)
SELECT (CAST(EXTRACT(dow FROM "public"."sessions"."opened_at") AS integer) + 1) AS "opened_at", AVG("public"."sessions"."cost") AS "avg",
  PERCENTILE_CONT(0.5) within group (order by "public"."sessions"."cost") AS "median"
FROM "public"."sessions"
GROUP BY (CAST(EXTRACT(dow FROM "public"."sessions"."opened_at") AS integer) + 1)
ORDER BY (CAST(EXTRACT(dow FROM "public"."sessions"."opened_at") AS integer) + 1) ASC
;
-- [shape] a question about the answer of another, with a filter of texts (src/metabase/driver/sql/query_processor.clj; from memory)
SELECT "source"."account" AS "account", SUM("source"."cost") AS "sum"
FROM (SELECT account, cost, opened_at FROM sessions WHERE inbound > 0) AS "source"
WHERE (LOWER("source"."account") LIKE '%bot%') AND ("source"."cost" IS NULL OR "source"."cost" > 0)
GROUP BY "source"."account"
ORDER BY "sum" DESC, "source"."account" ASC
LIMIT 2000
;
