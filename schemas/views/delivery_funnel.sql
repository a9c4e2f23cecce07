-- Delivery funnel: what became of the messages of each account, UTC day and method. A message that was seen was delivered,
-- also where that was not told.
--
-- account         TEXT    the account
-- day             DATE    the day they were sent
-- method          TEXT    send_message or broadcast_message
-- sent            BIGINT  messages accepted by Viber
-- delivered       BIGINT  of these delivered
-- seen            BIGINT  of these seen
-- failed          BIGINT  failed, and not delivered
-- pending         BIGINT  neither, and it may still be told
-- lost            BIGINT  neither, and settled
-- delivered_share DOUBLE  delivered of sent
-- seen_share      DOUBLE  seen of delivered
-- delivery_p50_ms BIGINT  within so many ms after sending half of those with a time of delivery were delivered
-- delivery_p90_ms BIGINT  nine in ten
SELECT
  account,
  day,
  method,
  sent,
  delivered,
  seen,
  failed,
  pending,
  lost,
  delivered / CAST(sent AS DOUBLE) AS delivered_share,
  seen / CAST(nullif(delivered, 0) AS DOUBLE) AS seen_share,
  times_ms[(timed + 1) / 2] AS delivery_p50_ms,
  times_ms[(timed * 9 + 9) / 10] AS delivery_p90_ms
FROM (
  SELECT
    account,
    day,
    method,
    count(*) AS sent,
    count(*) FILTER (WHERE is_delivered) AS delivered,
    count(seen_at) AS seen,
    count(*) FILTER (WHERE NOT is_delivered AND failed_at IS NOT NULL) AS failed,
    count(*) FILTER (WHERE NOT is_delivered AND failed_at IS NULL AND state = 'provisional') AS pending,
    count(*) FILTER (WHERE NOT is_delivered AND failed_at IS NULL AND state = 'settled') AS lost,
    count(delivery_ms) AS timed,
    array_agg(delivery_ms ORDER BY delivery_ms) FILTER (WHERE delivery_ms IS NOT NULL) AS times_ms
  FROM (
    SELECT
      account,
      local_date(sent_at, 'UTC') AS day,
      method,
      delivered_at IS NOT NULL OR seen_at IS NOT NULL AS is_delivered,
      seen_at,
      failed_at,
      state,
      (CAST(delivered_at AS BIGINT) - CAST(sent_at AS BIGINT)) / 1000 AS delivery_ms
    FROM messages
  ) AS told
  GROUP BY account, day, method
) AS counted
