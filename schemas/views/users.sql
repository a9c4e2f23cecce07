-- Users: one row per user of an account that has done or received anything (has a fact in `events`).
--
-- account         TEXT       the account
-- user_id         TEXT       Viber's id of the user
-- country         TEXT       of the latest event that carries one; NULL where none does
-- subscribed      BOOLEAN    by the last of subscribed, unsubscribed and inbound message; NULL where there is none
-- first_activity  TIMESTAMP  the first fact
-- last_activity   TIMESTAMP  the last fact
-- sessions        BIGINT     how many sessions the user has had, of both kinds
SELECT
  activity.account,
  activity.user_id,
  activity.country,
  activity.subscribed,
  activity.first_activity,
  activity.last_activity,
  coalesce(counted.sessions, 0) AS sessions
FROM (
  SELECT
    account,
    user_id,
    -- Tokens are unsigned in 64 bits: the negative ones are the greatest.
    last_value(country ORDER BY event_time, coalesce(message_token, 0) < 0, coalesce(message_token, 0), country)
      FILTER (WHERE country IS NOT NULL) AS country,
    last_value(type <> 'unsubscribed' ORDER BY event_time, CASE type WHEN 'message' THEN 0 WHEN 'subscribed' THEN 1 ELSE 2 END)
      FILTER (WHERE disposition = 'fact' AND origin = 'callback' AND type IN ('subscribed', 'unsubscribed', 'message'))
      AS subscribed,
    min(event_time) FILTER (WHERE disposition = 'fact') AS first_activity,
    max(event_time) FILTER (WHERE disposition = 'fact') AS last_activity
  FROM events
  WHERE user_id IS NOT NULL AND disposition IN ('fact', 'duplicate', 'info')
  GROUP BY account, user_id
  HAVING count(*) FILTER (WHERE disposition = 'fact') > 0
) AS activity
LEFT JOIN (
  SELECT account, user_id, count(*) AS sessions FROM sessions GROUP BY account, user_id
) AS counted
ON activity.account = counted.account AND activity.user_id = counted.user_id
