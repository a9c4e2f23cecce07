-- What Superset (with SQLAlchemy 1.4 and psycopg2) asks of a PostgreSQL server. [text]: short, or a fixed form, so this is the text that is
-- sent. [shape]: asks for the same columns with the same functions, operators and kinds of joins, but is written anew for this test.

-- [text] on connecting (SQLAlchemy: dialects/postgresql/base.py)
select pg_catalog.version()
;
-- [text] on connecting (SQLAlchemy: dialects/postgresql/base.py)
select current_schema()
;
-- [text] on connecting (SQLAlchemy: dialects/postgresql/base.py)
show standard_conforming_strings
;
-- [shape] on connecting: the types of hstore, if there are any (psycopg2: extras.py; from memory)
SELECT kind.oid, typarray FROM pg_type kind JOIN pg_namespace space ON space.oid = typnamespace WHERE typname = 'hstore'
;
-- [text] before each query of a schema (superset/db_engine_specs/postgres.py, get_prequeries)
set search_path = "public"
;
-- [text] the databases (superset/db_engine_specs/postgres.py, get_catalog_names)
SELECT datname FROM pg_database
WHERE datistemplate = false;
;
-- [shape] the schemas (SQLAlchemy: dialects/postgresql/base.py, get_schema_names; from memory)
SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_%' ORDER BY nspname
;
-- [shape] the tables; the same is asked for foreign tables (SQLAlchemy: dialects/postgresql/base.py, get_table_names; from memory)
SELECT rel.relname FROM pg_class rel JOIN pg_namespace space ON rel.relnamespace = space.oid WHERE rel.relkind in ('r', 'p') AND space.nspname = 'public'
;
-- [shape] the views (SQLAlchemy: dialects/postgresql/base.py, get_view_names; from memory)
SELECT rel.relname FROM pg_class rel JOIN pg_namespace space ON rel.relnamespace = space.oid WHERE rel.relkind IN ('v', 'm') AND space.nspname = 'public'
;
-- [shape] the oid of a table (SQLAlchemy: dialects/postgresql/base.py, get_table_oid; from memory)
SELECT rel.oid
FROM pg_catalog.pg_class rel
LEFT JOIN pg_catalog.pg_namespace space ON rel.relnamespace = space.oid
WHERE rel.relkind in ('r', 'v', 'm', 'f', 'p') AND rel.relname = 'sessions' AND (space.nspname = 'public')
;
-- [shape] the columns of a table, with defaults, comments and identities as JSON (SQLAlchemy: dialects/postgresql/base.py, get_columns)
SELECT att.attname, att.attnotnull, att.attrelid AS table_oid, att.attgenerated AS generated,
  pg_catalog.format_type(att.atttypid, att.atttypmod),
  (SELECT pg_catalog.pg_get_expr(preset.adbin, preset.adrelid) FROM pg_catalog.pg_attrdef preset
    WHERE att.atthasdef AND preset.adnum = att.attnum AND preset.adrelid = att.attrelid) AS DEFAULT,
  about.description AS comment,
  (SELECT json_build_object('always', att.attidentity = 'a', 'start', seq.seqstart, 'increment', seq.seqincrement,
      'minvalue', seq.seqmin, 'maxvalue', seq.seqmax, 'cache', seq.seqcache, 'cycle', seq.seqcycle)
    FROM pg_catalog.pg_class rel
    JOIN pg_catalog.pg_sequence seq ON rel."oid" = seq.seqrelid
    WHERE att.attidentity != '' AND rel.relkind = 'S'
      AND seq.seqrelid = pg_catalog.pg_get_serial_sequence(att.attrelid::regclass::text, att.attname)::regclass::oid
  ) AS identity_options
FROM pg_catalog.pg_attribute att
LEFT JOIN pg_catalog.pg_description about ON (about.objsubid = att.attnum AND about.objoid = att.attrelid)
WHERE NOT att.attisdropped AND att.attnum > 0 AND att.attrelid = 'public.sessions'::regclass
ORDER BY att.attnum
;
-- [shape] the domains (SQLAlchemy: dialects/postgresql/base.py, _load_domains)
SELECT kind.typname AS "name", space.nspname AS "schema", NOT kind.typnotnull AS "nullable", kind.typdefault AS "default",
  pg_catalog.format_type(kind.typbasetype, kind.typtypmod) AS "attype", pg_catalog.pg_type_is_visible(kind.oid) AS "visible"
FROM pg_catalog.pg_type kind
LEFT JOIN pg_catalog.pg_namespace space ON kind.typnamespace = space.oid
WHERE kind.typtype = 'd'
;
-- [shape] the enumerated types (SQLAlchemy: dialects/postgresql/base.py, _load_enums; from memory)
SELECT kind.typname AS "name", space.nspname AS "schema", lab.enumlabel AS "label", pg_catalog.pg_type_is_visible(kind.oid) AS "visible"
FROM pg_catalog.pg_type kind
LEFT JOIN pg_catalog.pg_namespace space ON kind.typnamespace = space.oid
LEFT JOIN pg_catalog.pg_enum lab ON lab.enumtypid = kind.oid
WHERE kind.typtype = 'e'
ORDER BY "schema", "name", lab.oid
;
-- [shape] the primary key: members of an index's key with their places (SQLAlchemy: dialects/postgresql/base.py, get_pk_constraint; from memory)
SELECT att.attname
FROM (
  SELECT unnest(ind.indkey) num, generate_subscripts(ind.indkey, 1) place
  FROM pg_catalog.pg_index ind
  WHERE ind.indisprimary AND ind.indrelid = 'public.sessions'::regclass
) part
JOIN pg_catalog.pg_attribute att ON part.num = att.attnum
WHERE att.attrelid = 'public.sessions'::regclass
ORDER BY part.place
;
-- [shape] the foreign keys (SQLAlchemy: dialects/postgresql/base.py, get_foreign_keys; from memory)
SELECT con.conname, pg_catalog.pg_get_constraintdef(con.oid, true) AS condef, space.nspname AS conschema
FROM pg_catalog.pg_constraint con, pg_namespace space, pg_class rel
WHERE con.contype = 'f' AND con.conrelid = 'public.sessions'::regclass AND rel.oid = confrelid AND rel.relnamespace = space.oid
ORDER BY 1
;
-- [shape] the indexes: vectors as texts and a member of any of them (SQLAlchemy: dialects/postgresql/base.py, get_indexes; from memory)
SELECT rel.relname, rel.reloptions, ind.indisunique, ind.indexprs, ind.indkey::varchar, ind.indoption::varchar, ind.indnkeyatts,
  att.attname, att.attnum, con.conrelid, way.amname, pg_get_expr(ind.indpred, ind.indrelid)
FROM pg_class own
JOIN pg_index ind ON ind.indrelid = own.oid
JOIN pg_class rel ON ind.indexrelid = rel.oid
LEFT OUTER JOIN pg_attribute att ON att.attrelid = own.oid AND att.attnum = ANY(ind.indkey)
LEFT OUTER JOIN pg_constraint con ON (con.conrelid = ind.indrelid AND con.conindid = ind.indexrelid AND con.contype in ('p', 'u', 'x'))
LEFT OUTER JOIN pg_am way ON way.oid = rel.relam
WHERE own.oid = 'public.sessions'::regclass AND own.relkind IN ('r', 'v', 'f', 'm', 'p') AND ind.indisprimary = 'f'
ORDER BY own.relname, rel.relname
;
-- [shape] the comment of a table (SQLAlchemy: dialects/postgresql/base.py, get_table_comment; from memory)
SELECT about.description AS table_comment FROM pg_catalog.pg_description about WHERE about.objoid = 'public.sessions'::regclass AND about.objsubid = 0
;
-- [text] SQL Lab: whom to cancel (superset/db_engine_specs/postgres.py, get_cancel_query_id)
SELECT pg_backend_pid()
;
-- [text] SQL Lab: a preview, one row more than is shown (superset/sql_lab.py; from memory)
SELECT * FROM public.sessions LIMIT 1001
;
-- [text] SQL Lab: what a query would cost (superset/db_engine_specs/postgres.py, estimate_statement_cost)
EXPLAIN SELECT account, count(*) FROM public.sessions GROUP BY account
;
-- [text] the values of a filter (superset/models/helpers.py, values_for_column)
SELECT DISTINCT account AS column_values 
FROM public.sessions 
 LIMIT 1000
;
-- [shape] the earliest and latest time of a filter (from memory)
SELECT min(opened_at) AS "MIN(opened_at)", max(opened_at) AS "MAX(opened_at)" 
FROM public.sessions 
 LIMIT 1000
;
-- [text] a chart over time by days (superset/models/helpers.py, get_sqla_query; time grains in db_engine_specs/postgres.py)
SELECT DATE_TRUNC('day', opened_at) AS opened_at, COUNT(*) AS count 
FROM public.sessions 
WHERE opened_at >= TO_TIMESTAMP('2026-03-01 00:00:00.000000', 'YYYY-MM-DD HH24:MI:SS.US') AND opened_at < TO_TIMESTAMP('2026-04-01 00:00:00.000000', 'YYYY-MM-DD HH24:MI:SS.US') GROUP BY DATE_TRUNC('day', opened_at) ORDER BY count DESC 
 LIMIT 10000
;
-- [shape] the same of the largest series only: a join with a ranking (superset/models/helpers.py, get_sqla_query)
SELECT DATE_TRUNC('week', opened_at) AS opened_at, account AS account, sum(cost) AS "SUM(cost)" 
FROM public.sessions JOIN (SELECT account AS account__, sum(cost) AS mme_inner__ 
FROM public.sessions 
WHERE opened_at >= TO_TIMESTAMP('2026-03-01 00:00:00.000000', 'YYYY-MM-DD HH24:MI:SS.US') AND opened_at < TO_TIMESTAMP('2026-04-01 00:00:00.000000', 'YYYY-MM-DD HH24:MI:SS.US') GROUP BY account ORDER BY mme_inner__ DESC 
 LIMIT 5) AS series_limit ON account = account__ 
WHERE opened_at >= TO_TIMESTAMP('2026-03-01 00:00:00.000000', 'YYYY-MM-DD HH24:MI:SS.US') AND opened_at < TO_TIMESTAMP('2026-04-01 00:00:00.000000', 'YYYY-MM-DD HH24:MI:SS.US') GROUP BY DATE_TRUNC('week', opened_at), account ORDER BY "SUM(cost)" DESC 
 LIMIT 10000
;
-- [shape] a chart on a query that was saved, with a filter and a condition on groups (superset/models/helpers.py, get_sqla_query)
SELECT account AS account, AVG(cost) AS "AVG(cost)", count(DISTINCT inbound) AS "COUNT_DISTINCT(inbound)" 
FROM (SELECT * FROM public.sessions WHERE inbound >= 0
) AS virtual_table 
WHERE account IN ('bot1', 'bot2') AND cost IS NOT NULL AND account ILIKE '%bot%' GROUP BY account 
HAVING ((COUNT(*) > 0)) ORDER BY "AVG(cost)" DESC 
 LIMIT 1000 OFFSET 0
;
