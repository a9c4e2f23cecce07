-- User timeline: what happened to each user: the facts, and the opening and closing of sessions. A view has no order
-- of its own: ORDER BY account, user_id, at, step, message_token.
--
-- account         TEXT       the account
-- user_id         TEXT       Viber's id of the user
-- at              TIMESTAMP  when it happened
-- what            TEXT       inbound, outbound, delivered, seen, failed, subscribed, unsubscribed, session_opened,
--                            session_closed
-- message_token   BIGINT     the message; of session_opened the one that opened it
-- session_id      TEXT       of session_opened and session_closed
-- step            INT        the order of what happened in the same millisecond
-- detail          TEXT       the message's type, else the method or nothing; the kind of the session opened, why it
--                            closed
SELECT
  account,
  user_id,
  event_time AS at,
  CASE WHEN origin = 'call' THEN 'outbound' WHEN type = 'message' THEN 'inbound' ELSE type END AS what,
  message_token,
  CAST(NULL AS TEXT) AS session_id,
  CAST(CASE WHEN origin = 'call' THEN 3 WHEN type = 'message' THEN 1 WHEN type = 'unsubscribed' THEN 5 ELSE 4 END AS INT)
    AS step,
  CASE WHEN origin = 'call' THEN coalesce(message_type, type) ELSE message_type END AS detail
FROM events
WHERE disposition = 'fact'
UNION ALL
SELECT account, user_id, opened_at, 'session_opened', opened_by_token, session_id, CAST(2 AS INT), kind
FROM sessions
UNION ALL
-- A session that ran out ended before what happens at that moment; others end by what happens then.
SELECT account, user_id, closed_at, 'session_closed', CAST(NULL AS BIGINT), session_id,
  CAST(CASE close_reason WHEN 'expired' THEN 0 ELSE 6 END AS INT), close_reason
FROM sessions
WHERE closed_at IS NOT NULL
