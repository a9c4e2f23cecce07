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
-- delivery_p50_ms DOUBLE  ms from sending to delivery: half of those with a time of it took at most so long
-- delivery_p90_ms DOUBLE  nine in ten
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
  count(*) FILTER (WHERE is_delivered) / CAST(count(*) AS DOUBLE) AS delivered_share,
  count(seen_at) / nullif(CAST(count(*) FILTER (WHERE is_delivered) AS DOUBLE), 0.0) AS seen_share,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY delivery_ms) AS delivery_p50_ms,
  percentile_cont(0.9) WITHIN GROUP (ORDER BY delivery_ms) AS delivery_p90_ms
FROM (
  SELECT
    account,
    local_date(sent_at, 'UTC') AS day,
    method,
    delivered_at IS NOT NULL OR seen_at IS NOT NULL AS is_delivered,
    seen_at,
    failed_at,
    state,
    round((date_part('epoch', delivered_at) - date_part('epoch', sent_at)) * 1000.0) AS delivery_ms
  FROM messages
) AS sent
GROUP BY account, day, method
