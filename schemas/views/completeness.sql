-- Completeness: what may be missing of each account, by UTC hour of arrival: beside the audit, it tells whether a verdict
-- can be trusted. completeness('2026-03-01') is from that time on, and reads little more.
--
-- account       TEXT       the account
-- hour          TIMESTAMP  when the hour began
-- sends         BIGINT     messages accepted by Viber, each receiver of a broadcast one
-- callbacks     BIGINT     callbacks of all kinds, repeats too
-- receipts      BIGINT     of these delivered, seen and failed
-- is_silent     BOOLEAN    sends and not one callback: callbacks may be missing
-- unsent        BIGINT     messages delivered or seen, first told in this hour, of whose sending nothing is recorded
-- unknown_calls BIGINT     sends that began in this hour and have no recorded result after a minute, see `unknown_calls`
-- gap_sends     BIGINT     sends (a broadcast one) that passed unrecorded in gaps that opened in this hour
-- gap_until     TIMESTAMP  when the last of these gaps was over
--
-- $since        TIMESTAMP  the parameter: '1970-01-01' where none is given
SELECT
  account,
  local_hour(at, 'UTC') AS hour,
  count(*) FILTER (WHERE what = 'call') AS sends,
  count(*) FILTER (WHERE what = 'callback') AS callbacks,
  count(*) FILTER (WHERE what = 'callback' AND type IN ('delivered', 'seen', 'failed')) AS receipts,
  count(*) FILTER (WHERE what = 'call') > 0 AND count(*) FILTER (WHERE what = 'callback') = 0 AS is_silent,
  count(*) FILTER (WHERE what = 'unsent') AS unsent,
  count(*) FILTER (WHERE what = 'unknown') AS unknown_calls,
  coalesce(sum(gap_sends), 0) AS gap_sends,
  max(gap_until) AS gap_until
FROM (
  SELECT account, received_at AS at, origin AS what, type, CAST(NULL AS BIGINT) AS gap_sends,
    arrow_cast(NULL, 'Timestamp(Microsecond, Some("UTC"))') AS gap_until
  FROM events
  WHERE received_at >= $since AND account IS NOT NULL
    AND (origin = 'callback' OR origin = 'call' AND disposition IN ('fact', 'too_late'))
  UNION ALL
  SELECT account, min(at), 'unsent', NULL, NULL, NULL
  FROM (
    SELECT account, user_id, message_token, received_at AS at, 0 AS sent
    FROM events
    WHERE origin = 'callback' AND type IN ('delivered', 'seen') AND disposition = 'fact' AND received_at >= $since
    UNION ALL
    -- A receipt is believed to tell of the last 30 days, and counts for a message that was sent in the window before.
    SELECT account, user_id, message_token, NULL, 1
    FROM messages
    WHERE sent_at + delivery_window() + INTERVAL '30 days' >= $since
  ) AS receipts
  GROUP BY account, user_id, message_token
  HAVING sum(sent) = 0
  UNION ALL
  SELECT account, started_at, 'unknown', NULL, NULL, NULL
  FROM unknown_calls($since) AS unknown
  WHERE age_seconds > 60 AND account IS NOT NULL
  UNION ALL
  SELECT account, min(received_at), 'gap', NULL, max(sends), max(received_at)
  FROM (
    SELECT account, split_part(event_id, '/', 1) AS gap_id, received_at,
      coalesce(CAST(regexp_match(data, '"send_message": ?([0-9]{1,15})')[1] AS BIGINT), 0)
        + coalesce(CAST(regexp_match(data, '"broadcast_message": ?([0-9]{1,15})')[1] AS BIGINT), 0) AS sends
    FROM events
    WHERE origin = 'counterbat' AND type IN ('gap.opened', 'gap.closed') AND received_at >= $since
      AND account IS NOT NULL
  ) AS told
  GROUP BY account, gap_id
) AS happened
GROUP BY account, local_hour(at, 'UTC')
