-- Usage hourly: what each account did, by hour. usage_hourly('Europe/Kyiv') counts by the hours of that time zone.
--
-- account          TEXT       the account
-- hour             TIMESTAMP  when the hour began
-- inbound          BIGINT     messages of users, each in the hour of the copy that was told first; not those that came too late,
--                             which `sessions` has once a rebuild has folded them in
-- outbound         BIGINT     messages to users; what follows tells more of them, also what came later
-- in_service       BIGINT     expected in a service session
-- in_paid          BIGINT     expected in a paid session
-- out_of_session   BIGINT     expected out of session
-- charged          BIGINT     reported with billing_status 5
-- overcharged      BIGINT     with verdict overcharged
-- delivered        BIGINT     delivered so far
-- seen             BIGINT     seen so far
-- failed           BIGINT     failed so far
-- service_sessions BIGINT     service sessions opened
-- paid_sessions    BIGINT     paid sessions opened
--
-- $time_zone       TEXT       the parameter: 'UTC' where none is given
SELECT
  account,
  local_hour(at, $time_zone) AS hour,
  count(*) FILTER (WHERE what = 'inbound') AS inbound,
  count(*) FILTER (WHERE what = 'outbound') AS outbound,
  count(*) FILTER (WHERE expected = 'in_service') AS in_service,
  count(*) FILTER (WHERE expected = 'in_paid') AS in_paid,
  count(*) FILTER (WHERE expected = 'out_of_session') AS out_of_session,
  count(*) FILTER (WHERE billing_status = 5) AS charged,
  count(*) FILTER (WHERE verdict = 'overcharged') AS overcharged,
  count(delivered_at) AS delivered,
  count(seen_at) AS seen,
  count(failed_at) AS failed,
  count(*) FILTER (WHERE what = 'service') AS service_sessions,
  count(*) FILTER (WHERE what = 'paid') AS paid_sessions
FROM (
  SELECT account, sent_at AS at, 'outbound' AS what, expected, billing_status, verdict, delivered_at, seen_at, failed_at
  FROM messages
  UNION ALL
  SELECT account, event_time, 'inbound', NULL, NULL, NULL, NULL, NULL, NULL
  FROM events
  WHERE disposition = 'fact' AND origin = 'callback' AND type = 'message'
  UNION ALL
  SELECT account, opened_at, kind, NULL, NULL, NULL, NULL, NULL, NULL
  FROM sessions
) AS happened
GROUP BY account, local_hour(at, $time_zone)
