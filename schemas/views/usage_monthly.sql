-- Usage monthly: what each account did, by month. usage_monthly('Europe/Kyiv') counts by the months of that time zone.
--
-- account          TEXT    the account
-- month            DATE    the first day of the month
-- inbound          BIGINT  as in `usage_hourly`, like all that follow
-- outbound         BIGINT  messages to users
-- in_service       BIGINT  of these expected in a service session
-- in_paid          BIGINT  expected in a paid session
-- out_of_session   BIGINT  expected out of session
-- charged          BIGINT  reported with billing_status 5
-- overcharged      BIGINT  with verdict overcharged
-- delivered        BIGINT  delivered so far
-- seen             BIGINT  seen so far
-- failed           BIGINT  failed so far
-- service_sessions BIGINT  service sessions opened
-- paid_sessions    BIGINT  paid sessions opened
--
-- $time_zone       TEXT    the parameter: 'UTC' where none is given
SELECT
  account,
  month_of(local_date(hour, $time_zone)) AS month,
  sum(inbound) AS inbound,
  sum(outbound) AS outbound,
  sum(in_service) AS in_service,
  sum(in_paid) AS in_paid,
  sum(out_of_session) AS out_of_session,
  sum(charged) AS charged,
  sum(overcharged) AS overcharged,
  sum(delivered) AS delivered,
  sum(seen) AS seen,
  sum(failed) AS failed,
  sum(service_sessions) AS service_sessions,
  sum(paid_sessions) AS paid_sessions
FROM usage_hourly($time_zone) AS hourly
GROUP BY account, month_of(local_date(hour, $time_zone))
