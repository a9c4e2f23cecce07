-- Avoidable cost: messages that Viber charged out of session, and that would have been free a little later or earlier: a
-- service session of the same user had ended, or would open, within 60 minutes; avoidable_cost(15) says 15.
--
-- account       TEXT           the account
-- user_id       TEXT           the receiver
-- message_token BIGINT         the message
-- sent_at       TIMESTAMP      when Viber accepted it
-- session_id    TEXT           the service session nearest to it
-- side          TEXT           after: it was sent after the end of that session; before: before its opening
-- distance_ms   BIGINT         how far from it
-- country       TEXT           of the receiver
-- cost          DECIMAL(18,6)  what it costs; NULL where no price is known
-- currency      TEXT           of the cost
-- state         TEXT           provisional or settled
--
-- $minutes      INT            the parameter: 60 where none is given
SELECT
  account, user_id, message_token, sent_at, session_id, side, distance_ms, country, cost, currency, state
FROM (
  SELECT
    *,
    row_number() OVER (PARTITION BY account, user_id, message_token ORDER BY distance_ms, session_id) AS place
  FROM (
    SELECT
      charged.*,
      near.session_id,
      CASE WHEN near.opened_at > charged.sent_at THEN 'before' ELSE 'after' END AS side,
      CASE
        WHEN near.opened_at > charged.sent_at THEN CAST(near.opened_at AS BIGINT) - CAST(charged.sent_at AS BIGINT)
        ELSE CAST(charged.sent_at AS BIGINT) - CAST(near.ended_at AS BIGINT)
      END / 1000 AS distance_ms
    FROM (
      SELECT account, user_id, message_token, sent_at, country, cost, currency, state
      FROM messages
      WHERE expected = 'out_of_session' AND billing_status = 5
    ) AS charged
    JOIN (
      SELECT account, user_id, session_id, opened_at, coalesce(closed_at, expires_at) AS ended_at
      FROM sessions
      WHERE kind = 'service'
    ) AS near
    ON charged.account = near.account AND charged.user_id = near.user_id
      AND charged.sent_at >= near.opened_at - $minutes AND charged.sent_at <= near.ended_at + $minutes
  ) AS pairs
) AS placed
WHERE place = 1
