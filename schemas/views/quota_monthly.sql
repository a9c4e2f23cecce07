-- Quota monthly: how much of the free out-of-session messages of each account and UTC month is used, and when it will be
-- used up. A condition on `month` reads that month only. Months without a message or a refusal are not there.
--
-- account          TEXT       the account
-- month            DATE       the first day of the month
-- policy           TEXT       of the last message; NULL where all were refused
-- free_quota       BIGINT     out-of-session messages that this policy has free a month
-- out_of_session   BIGINT     those sent
-- used             BIGINT     how much of the quota they use
-- free_left        BIGINT     what is left of it
-- reported_free    BIGINT     of all messages those that Viber counts against the quota: billing_status 3 and 4
-- reported_charged BIGINT     of all messages those that Viber charged: billing_status 5
-- charged_in_quota BIGINT     those that Viber charged although quota was left
-- refused_free     BIGINT     sends refused with status 23: the free ones are used up, and the bot cannot pay
-- refused_balance  BIGINT     sends refused with status 24: the free ones are used up, and there is no balance
-- first_refused_at TIMESTAMP  the first of either
-- as_of            TIMESTAMP  up to when it is counted: now, or the end of the month
-- per_day          DOUBLE     out-of-session messages a day, from the month's beginning until then
-- exhausted_at     TIMESTAMP  when the last free one was sent
-- exhausts_at      TIMESTAMP  when it will be if it goes on so; NULL when it has been, or that is not within the month
SELECT
  account,
  month,
  policy,
  free_quota,
  out_of_session,
  CASE WHEN out_of_session < free_quota THEN out_of_session ELSE free_quota END AS used,
  CASE WHEN out_of_session < free_quota THEN free_quota - out_of_session ELSE 0 * free_quota END AS free_left,
  reported_free,
  reported_charged,
  charged_in_quota,
  refused_free,
  refused_balance,
  first_refused_at,
  arrow_cast(CAST(as_of_s * 1000000 AS BIGINT), 'Timestamp(Microsecond, Some("UTC"))') AS as_of,
  per_day,
  exhausted_at,
  CASE
    WHEN out_of_session < free_quota AND as_of_s + (free_quota - out_of_session) / per_day * 86400 < end_s
    THEN arrow_cast(CAST((as_of_s + (free_quota - out_of_session) / per_day * 86400) * 1000000 AS BIGINT),
      'Timestamp(Microsecond, Some("UTC"))')
  END AS exhausts_at
FROM (
  -- Without a message, or a moment that has passed, there is no rate.
  SELECT *, nullif(out_of_session, 0) * CAST(86400 AS DOUBLE) / CASE WHEN as_of_s > start_s THEN as_of_s - start_s END AS per_day
  FROM (
    SELECT
      *,
      date_part('epoch', month) AS start_s,
      date_part('epoch', month_of(month + INTERVAL '32 days')) AS end_s,
      least(date_part('epoch', now()), date_part('epoch', month_of(month + INTERVAL '32 days'))) AS as_of_s
    FROM (
      SELECT
        account,
        month,
        last_value(policy ORDER BY at) FILTER (WHERE policy IS NOT NULL) AS policy,
        last_value(free_quota ORDER BY at) FILTER (WHERE policy IS NOT NULL) AS free_quota,
        count(nth) AS out_of_session,
        count(*) FILTER (WHERE billing_status IN (3, 4)) AS reported_free,
        count(*) FILTER (WHERE billing_status = 5) AS reported_charged,
        count(*) FILTER (WHERE billing_status = 5 AND nth <= free_quota) AS charged_in_quota,
        count(DISTINCT refusal) FILTER (WHERE status = 23) AS refused_free,
        count(DISTINCT refusal) FILTER (WHERE status = 24) AS refused_balance,
        min(at) FILTER (WHERE status IS NOT NULL) AS first_refused_at,
        min(at) FILTER (WHERE nth = free_quota) AS exhausted_at
      FROM (
        SELECT account, month, sent_at AS at, policy, free_quota, nth, billing_status, NULL AS refusal, NULL AS status
        FROM predictions
        UNION ALL
        SELECT account, month_of(local_date(received_at, 'UTC')), received_at, NULL, NULL, NULL, NULL, event_id, status
        FROM events
        WHERE origin = 'call' AND type IN ('send_message', 'broadcast_message') AND status IN (23, 24)
          AND account IS NOT NULL
        UNION ALL
        -- A broadcast tells it of single receivers.
        SELECT account, month_of(local_date(received_at, 'UTC')), received_at, NULL, NULL, NULL, NULL, event_id,
          CAST(regexp_match(data, '"receiver_status": ?(23|24)[,}]')[1] AS INT)
        FROM events
        WHERE origin = 'call' AND type = 'broadcast_message' AND status = 0 AND account IS NOT NULL
          AND regexp_like(data, '"receiver_status": ?(23|24)[,}]')
      ) AS told
      GROUP BY account, month
    ) AS counted
  ) AS timed
) AS rated
