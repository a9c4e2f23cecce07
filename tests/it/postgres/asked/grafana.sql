-- What Grafana's data source for PostgreSQL asks. [text]: short, or what a macro gives, so this is the text that is sent; the queries around
-- the macros are a user's. [shape]: asks for the same with the same functions and operators, but is written anew for this test.

-- [shape] the connection's test, an empty query (pkg/tsdb/grafana-postgresql-datasource/sqleng/handler_checkhealth.go; the driver's ping)
/* ping */
;
-- [text] the version, on saving the data source (postgresMetaQuery.ts, getVersion)
SELECT current_setting('server_version_num')::int/100 as version
;
-- [text] whether there is TimescaleDB (postgresMetaQuery.ts, getTimescaleDBVersion)
SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'
;
-- [shape] the schemas (postgresMetaQuery.ts, showSchemas)
SELECT schema_name AS "name"
FROM information_schema.schemata
WHERE schema_name NOT IN ('pg_toast', 'pg_catalog', 'information_schema', '_timescaledb_internal')
ORDER BY schema_name
;
-- [shape] the tables, first those whose schema is in the search path (postgresMetaQuery.ts, showTables)
SELECT
  CASE WHEN quote_ident(table_schema) IN (
      SELECT CASE WHEN trim(part[place]) = '"$user"' THEN user ELSE trim(part[place]) END
      FROM generate_series(
          array_lower(string_to_array(current_setting('search_path'), ','), 1),
          array_upper(string_to_array(current_setting('search_path'), ','), 1)
        ) AS place,
        string_to_array(current_setting('search_path'), ',') part
    )
    THEN quote_ident(table_name)
    ELSE quote_ident(table_schema) || '.' || quote_ident(table_name)
  END AS "table"
FROM information_schema.tables
WHERE quote_ident(table_schema) NOT IN ('pg_catalog', 'information_schema', '_timescaledb_internal')
ORDER BY CASE WHEN quote_ident(table_schema) IN (
    SELECT CASE WHEN trim(part[place]) = '"$user"' THEN user ELSE trim(part[place]) END
    FROM generate_series(
        array_lower(string_to_array(current_setting('search_path'), ','), 1),
        array_upper(string_to_array(current_setting('search_path'), ','), 1)
      ) AS place,
      string_to_array(current_setting('search_path'), ',') part
  ) THEN 0 ELSE 1 END, 1
;
-- [shape] the tables of a schema (postgresMetaQuery.ts, showTables)
SELECT quote_ident(table_name) AS "table" FROM information_schema.tables WHERE quote_ident(table_schema) = 'public' ORDER BY 1
;
-- [shape] the columns of a table without its schema: a condition that is a case (postgresMetaQuery.ts, getSchema)
SELECT data_type AS "type", quote_ident(column_name) AS "column"
FROM information_schema.columns
WHERE CASE WHEN array_length(parse_ident('sessions'), 1) = 2
  THEN quote_ident(table_name) = (parse_ident('sessions'))[2] AND quote_ident(table_schema) = (parse_ident('sessions'))[1]
  ELSE quote_ident(table_name) = 'sessions' AND quote_ident(table_schema) IN (
    SELECT CASE WHEN trim(part[place]) = '"$user"' THEN user ELSE trim(part[place]) END
    FROM generate_series(
        array_lower(string_to_array(current_setting('search_path'), ','), 1),
        array_upper(string_to_array(current_setting('search_path'), ','), 1)
      ) AS place,
      string_to_array(current_setting('search_path'), ',') part
  )
END
;
-- [shape] the columns of a table with its schema (postgresMetaQuery.ts, getSchema)
SELECT data_type AS "type", quote_ident(column_name) AS "column"
FROM information_schema.columns
WHERE CASE WHEN array_length(parse_ident('public.sessions'), 1) = 2
  THEN quote_ident(table_name) = (parse_ident('public.sessions'))[2] AND quote_ident(table_schema) = (parse_ident('public.sessions'))[1]
  ELSE quote_ident(table_name) = 'public.sessions'
END
;
-- [text] the builder's table of rows; a space stays at the end (sqlUtil.ts, toRawSql)
SELECT opened_at, account, cost FROM public.sessions LIMIT 50 
;
-- [text] the builder's groups, with a filter, an order and no schema (sqlUtil.ts, toRawSql)
SELECT COUNT(account) AS "sessions", account FROM sessions WHERE inbound > 0 GROUP BY account ORDER BY COUNT(account) DESC LIMIT 50 
;
-- [text] a series of time: $__time and $__timeFilter (macros.go)
SELECT opened_at AS "time", cost FROM sessions WHERE opened_at BETWEEN '2026-03-01T00:00:00Z' AND '2026-03-31T23:59:59.999Z' ORDER BY 1
;
-- [text] sessions each 5 minutes: $__timeGroupAlias and $__timeFilter (macros.go)
SELECT floor(extract(epoch from opened_at)/300)*300 AS "time", count(*) AS "sessions"
FROM sessions
WHERE opened_at BETWEEN '2026-03-01T00:00:00Z' AND '2026-03-31T23:59:59.999Z'
GROUP BY 1
ORDER BY 1
;
-- [text] a line each account: $__timeGroupAlias in the form of the older builder (macros.go)
SELECT
  floor(extract(epoch from "opened_at")/86400)*86400 AS "time",
  account AS metric,
  avg(cost) AS "cost"
FROM sessions
WHERE
  "opened_at" BETWEEN '2026-03-01T00:00:00Z' AND '2026-03-31T23:59:59.999Z'
GROUP BY 1,2
ORDER BY 1,2
;
-- [text] $__timeGroup with a name of the user's and in the grouping itself (macros.go)
SELECT floor(extract(epoch from opened_at)/3600)*3600 as time, sum(inbound) AS inbound
FROM public.sessions
WHERE opened_at BETWEEN '2026-03-01T00:00:00.5Z' AND '2026-03-31T23:59:59.999Z'
GROUP BY floor(extract(epoch from opened_at)/3600)*3600
ORDER BY time
;
-- [text] $__timeGroup of less than a second (macros.go)
SELECT floor(extract(epoch from opened_at)/0.02)*0.02 AS "time", max(cost) AS cost FROM sessions GROUP BY 1 ORDER BY 1 LIMIT 10
;
-- [text] $__timeFrom and $__timeTo (macros.go)
SELECT account, count(*) AS sessions, sum(cost) AS cost
FROM sessions
WHERE opened_at >= '2026-03-01T00:00:00Z' AND opened_at < '2026-03-31T23:59:59.999Z'
GROUP BY account
ORDER BY cost DESC NULLS LAST
;
-- [text] $__timeEpoch (macros.go)
SELECT extract(epoch from opened_at) as "time", inbound AS value FROM sessions ORDER BY 1
;
-- [text] $__unixEpochFilter and $__unixEpochGroupAlias on seconds (macros.go)
SELECT floor((seconds)/3600)*3600 AS "time", sum(inbound) AS inbound
FROM (SELECT extract(epoch from opened_at) AS seconds, inbound FROM sessions) AS s
WHERE seconds >= 1772323200 AND seconds <= 1775001599
GROUP BY 1
ORDER BY 1
;
-- [text] $__unixEpochNanoFilter on billionths of seconds (macros.go)
SELECT count(*) AS n
FROM (SELECT (extract(epoch from opened_at) * 1000000000)::bigint AS nanos FROM sessions) AS s
WHERE nanos >= 1772323200000000000 AND nanos <= 1775001599999000000
;
-- [text] annotations, with tags: the columns that Grafana looks for, around $__timeFilter (macros.go)
SELECT extract(epoch from opened_at) AS time, account AS text, 'session,opened' AS tags
FROM sessions
WHERE opened_at BETWEEN '2026-03-01T00:00:00Z' AND '2026-03-31T23:59:59.999Z'
LIMIT 100
;
-- [text] annotations of spans of time (macros.go)
SELECT opened_at AS time, opened_at + interval '1 hour' AS timeend, concat(account, ': ', cost::text) AS text
FROM sessions
WHERE opened_at BETWEEN '2026-03-01T00:00:00Z' AND '2026-03-31T23:59:59.999Z' AND cost IS NOT NULL
;
-- [text] a dashboard's variable: what is shown and what is meant (responseParser.ts)
SELECT DISTINCT account AS __text, account AS __value FROM sessions ORDER BY 1
;
-- [text] a query with a variable of several values (datasource.ts, interpolateVariable)
SELECT floor(extract(epoch from opened_at)/3600)*3600 AS "time", account AS metric, count(*) AS value
FROM sessions
WHERE account IN ('bot1','bot2','it''s') AND opened_at BETWEEN '2026-03-01T00:00:00Z' AND '2026-03-31T23:59:59.999Z'
GROUP BY 1, 2
ORDER BY 1
;
-- [shape] the older builder's rate: a difference over a window (from memory: releases before 10)
SELECT floor(extract(epoch from opened_at)/3600)*3600 AS "time",
  (CASE WHEN max(cost) >= lag(max(cost)) OVER (ORDER BY floor(extract(epoch from opened_at)/3600)*3600)
    THEN max(cost) - lag(max(cost)) OVER (ORDER BY floor(extract(epoch from opened_at)/3600)*3600)
    WHEN lag(max(cost)) OVER (ORDER BY floor(extract(epoch from opened_at)/3600)*3600) IS NULL THEN NULL
    ELSE max(cost) END) AS "cost"
FROM sessions
GROUP BY 1
ORDER BY 1
;
-- [shape] the older builder's percentile (from memory: releases before 10)
SELECT floor(extract(epoch from opened_at)/86400)*86400 AS "time", percentile_cont(0.95) WITHIN GROUP (ORDER BY cost) AS "cost"
FROM sessions
GROUP BY 1
ORDER BY 1
;
