-- First response: how soon users were answered, by account and UTC day on which their service session opened. It is the
-- first message to the user in the session that counts.
--
-- account  TEXT    the account
-- day      DATE    the day
-- sessions BIGINT  service sessions opened
-- answered BIGINT  of these answered so far
-- p50_ms   BIGINT  within so many ms after the opening half of these were answered
-- p90_ms   BIGINT  nine in ten
-- p99_ms   BIGINT  99 in 100
-- max_ms   BIGINT  all
SELECT
  account,
  day,
  sessions,
  answered,
  times_ms[(answered + 1) / 2] AS p50_ms,
  times_ms[(answered * 9 + 9) / 10] AS p90_ms,
  times_ms[(answered * 99 + 99) / 100] AS p99_ms,
  times_ms[answered] AS max_ms
FROM (
  SELECT
    account,
    local_date(opened_at, 'UTC') AS day,
    count(*) AS sessions,
    count(first_response_ms) AS answered,
    array_agg(first_response_ms ORDER BY first_response_ms) FILTER (WHERE first_response_ms IS NOT NULL) AS times_ms
  FROM sessions
  WHERE kind = 'service'
  GROUP BY account, local_date(opened_at, 'UTC')
) AS sorted
