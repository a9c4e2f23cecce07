-- Settled months: the UTC months of each account that nothing can change any more but a rebuild: every session that was
-- opened in one and every message that was sent in it is settled, and what may still come is too late for it.
--
-- account    TEXT           the account
-- month      DATE           the first day of the month
-- policy     TEXT           of the last message
-- fee        DECIMAL(18,6)  the monthly fee of that policy, in EUR
-- settled_at TIMESTAMP      from this watermark on it is settled
SELECT account, month, policy, CAST(coalesce(monthly_fee_eur, 0) AS DECIMAL(18, 6)) AS fee, settled_at
FROM (
  SELECT
    account,
    month,
    is_settled,
    policy,
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
      last_value(policy ORDER BY ended_at) FILTER (WHERE is_message) AS policy
    FROM (
      SELECT account, month_of(local_date(sent_at, 'UTC')) AS month, sent_at AS ended_at, state = 'settled' AS is_settled,
        policy, true AS is_message
      FROM messages
      UNION ALL
      SELECT account, month_of(local_date(opened_at, 'UTC')), coalesce(closed_at, expires_at), state = 'settled', policy,
        false
      FROM sessions
    ) AS told
    GROUP BY account, month
    HAVING bool_or(is_message)
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
