-- Settled months: the UTC months of each account that nothing can change any more but a rebuild: every session that was
-- opened in one and every message that was sent in it is settled, and what may still come is too late for it. A month
-- without any is there too, up to 12 months after the account's last.
--
-- account    TEXT           the account
-- month      DATE           the first day of the month
-- policy     TEXT           of the last message; where there is none of the last session, or else the one in force for the
--                           account when the month ended (`account_policies`)
-- fee        DECIMAL(18,6)  the monthly fee of that policy, in EUR
-- settled_at TIMESTAMP      from this watermark on it is settled
SELECT account, month, policy, CAST(coalesce(monthly_fee_eur, 0) AS DECIMAL(18, 6)) AS fee, settled_at
FROM (
  SELECT
    account,
    month,
    is_settled,
    coalesce(of_messages, of_sessions, in_force) AS policy,
    watermark,
    greatest(
      last_end + arrow_cast((allowed_lateness_s + delivery_window_s) * 1000000, 'Duration(Microsecond)'),
      arrow_cast(month_of(month + INTERVAL '32 days'), 'Timestamp(Microsecond, Some("UTC"))')
        + arrow_cast(allowed_lateness_s * 1000000, 'Duration(Microsecond)')
    ) AS settled_at
  FROM (
    SELECT
      account,
      month,
      bool_and(is_settled) AS is_settled,
      max(ended_at) AS last_end,
      last_value(policy ORDER BY ended_at) FILTER (WHERE what = 'message') AS of_messages,
      last_value(policy ORDER BY ended_at) FILTER (WHERE what = 'session') AS of_sessions,
      max(policy) FILTER (WHERE what = 'month') AS in_force
    FROM (
      SELECT account, month_of(local_date(sent_at, 'UTC')) AS month, sent_at AS ended_at, state = 'settled' AS is_settled,
        policy, 'message' AS what
      FROM messages
      UNION ALL
      SELECT account, month_of(local_date(opened_at, 'UTC')), coalesce(closed_at, expires_at), state = 'settled', policy,
        'session'
      FROM sessions
      UNION ALL
      SELECT series.account, series.month, NULL, true, last_value(chain.policy ORDER BY chain.valid_from NULLS FIRST), 'month'
      FROM (
        SELECT account, CAST(month + ahead AS DATE) AS month
        FROM (
          SELECT account, month_of(local_date(sent_at, 'UTC')) AS month FROM messages
          UNION
          SELECT account, month_of(local_date(opened_at, 'UTC')) FROM sessions
        ) AS lively
        CROSS JOIN (SELECT month_of(local_date(min(watermark), 'UTC')) AS reached FROM partitions) AS newest
        CROSS JOIN (VALUES (INTERVAL '0 months'), (INTERVAL '1 month'), (INTERVAL '2 months'), (INTERVAL '3 months'),
          (INTERVAL '4 months'), (INTERVAL '5 months'), (INTERVAL '6 months'), (INTERVAL '7 months'), (INTERVAL '8 months'),
          (INTERVAL '9 months'), (INTERVAL '10 months'), (INTERVAL '11 months'), (INTERVAL '12 months')) AS year(ahead)
        WHERE coalesce(CAST(month + ahead AS DATE) <= reached, true)
      ) AS series
      LEFT JOIN (SELECT DISTINCT account FROM account_policies WHERE account IS NOT NULL) AS own
      ON series.account = own.account
      JOIN account_policies AS chain
      ON chain.account IS NOT DISTINCT FROM own.account
      WHERE chain.valid_from IS NULL
        OR chain.valid_from < arrow_cast(month_of(series.month + INTERVAL '32 days'), 'Timestamp(Microsecond, Some("UTC"))')
      GROUP BY series.account, series.month
    ) AS told
    GROUP BY account, month
  ) AS months
  CROSS JOIN (
    SELECT
      -- A partition without a watermark may still bring anything.
      CASE WHEN count(watermark) = count(*) THEN min(watermark) END AS watermark,
      max(allowed_lateness_s) AS allowed_lateness_s,
      max(delivery_window_s) AS delivery_window_s
    FROM partitions
  ) AS clock
) AS timed
LEFT JOIN policies ON timed.policy = policies.name
WHERE is_settled AND watermark >= settled_at
