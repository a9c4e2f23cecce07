-- First response: how soon users were answered, by account and UTC day on which their service session opened. It is the
-- first message to the user in the session that counts.
--
-- account  TEXT    the account
-- day      DATE    the day
-- sessions BIGINT  service sessions opened
-- answered BIGINT  of these answered so far
-- p50_ms   DOUBLE  ms from the opening to the answer: half of the answered ones were at most so long unanswered
-- p90_ms   DOUBLE  nine in ten
-- p99_ms   DOUBLE  99 in 100
-- max_ms   BIGINT  all
SELECT
  account,
  local_date(opened_at, 'UTC') AS day,
  count(*) AS sessions,
  count(first_response_ms) AS answered,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY CAST(first_response_ms AS DOUBLE)) AS p50_ms,
  percentile_cont(0.9) WITHIN GROUP (ORDER BY CAST(first_response_ms AS DOUBLE)) AS p90_ms,
  percentile_cont(0.99) WITHIN GROUP (ORDER BY CAST(first_response_ms AS DOUBLE)) AS p99_ms,
  max(first_response_ms) AS max_ms
FROM sessions
WHERE kind = 'service'
GROUP BY account, local_date(opened_at, 'UTC')
