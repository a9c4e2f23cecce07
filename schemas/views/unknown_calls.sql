-- Unknown calls: sends whose start is recorded ([log] intent) and whose result is not, so Viber may have taken and billed
-- them or not: the gateway was ended between the two, or the result waits in its spill until the brokers are back. A call
-- that is still under way is there as well: it is younger than [upstream] timeout. unknown_calls('2026-03-01T10:00:00Z')
-- are those from that time on, and reads nothing older.
--
-- account     TEXT      the account
-- user_id     TEXT      the receiver; NULL of a broadcast
-- method      TEXT      send_message or broadcast_message
-- receivers   TEXT      ids of the receivers, a JSON array
-- call_id     TEXT      names the call: the event_id of its start, and `call_id` in the data of its result
-- started_at  TIMESTAMP when it was about to be relayed
-- age_seconds BIGINT    how long ago that is
-- digest      TEXT      SHA-256 of the request without its token, in hexadecimal digits
--
-- $since      TIMESTAMP the parameter: '1970-01-01' where none is given
SELECT
  account,
  user_id,
  regexp_match(data, '"method":"([a-z_]+)"')[1] AS method,
  regexp_match(data, '"receivers":(\[.*\]),"digest":"[0-9a-f]+"}$')[1] AS receivers,
  call_id,
  started_at,
  CAST(date_part('epoch', now()) - date_part('epoch', started_at) AS BIGINT) AS age_seconds,
  regexp_match(data, '"digest":"([0-9a-f]+)"}$')[1] AS digest
FROM (
  SELECT
    call_id,
    max(account) AS account,
    max(user_id) AS user_id,
    min(started_at) AS started_at,
    max(data) AS data
  FROM (
    SELECT event_id AS call_id, account, user_id, received_at AS started_at, data, 0 AS results
    FROM events
    WHERE origin = 'counterbat' AND type = 'call.started' AND received_at >= $since
    UNION ALL
    -- A result begins with the id of its call.
    SELECT substr(data, 13, 36), NULL, NULL, NULL, NULL, 1
    FROM events
    WHERE origin = 'call' AND data LIKE '{"call_id":"%' AND received_at >= $since
  ) AS told
  GROUP BY call_id
  HAVING sum(results) = 0
) AS silent
