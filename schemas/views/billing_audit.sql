-- Billing audit: messages whose billing_status is not what the rules say (verdict not agreed), and what may be the reason.
-- billing_audit('2026-03-01') is of messages sent from that time on, and reads little more.
--
-- account        TEXT           the account
-- user_id        TEXT           the receiver
-- message_token  BIGINT         the message
-- session_id     TEXT           the session it belongs to
-- sent_at        TIMESTAMP      when Viber accepted it
-- method         TEXT           send_message or broadcast_message
-- country        TEXT           of the receiver
-- policy         TEXT           the policy it follows
-- expected       TEXT           in_service, in_paid or out_of_session
-- billing_status INT            what Viber reported
-- verdict        TEXT           overcharged, recharged, missed_session, unseen_session or unreported
-- at_stake       DECIMAL(18,6)  what Viber charged against the rules: the cost of an overcharged or recharged message,
--                               NULL where no price is known; 0 of all others
-- currency       TEXT           of that
-- reason         TEXT           the first of these that holds, a word and an explanation: unreported, billing_inferred,
--                               repeat, clock skew, late inbound, edge, policy, first day, missed callbacks, unexplained
-- state          TEXT           provisional or settled
--
-- $since         TIMESTAMP      the parameter: '1970-01-01' where none is given
SELECT
  account, user_id, message_token, session_id, sent_at, method, country, policy, expected, billing_status, verdict,
  CASE WHEN verdict IN ('overcharged', 'recharged') THEN cost ELSE CAST(0 AS DECIMAL(18, 6)) END AS at_stake,
  currency,
  CASE
    WHEN verdict = 'unreported' AND billing_status IS NULL THEN 'unreported: Viber told no billing_status'
    WHEN verdict = 'unreported' THEN 'unreported: a billing_status that is not known'
    WHEN billing_inferred THEN 'billing_inferred: Viber told one billing_status for a whole broadcast'
    WHEN is_repeated THEN 'repeat: the call was told more than once, and the earliest counts'
    WHEN is_skewed THEN 'clock skew: the time of the message, or of the one that opened its session, was not believed'
    WHEN is_opened_late THEN 'late inbound: the message that opened the session was received after the call'
    WHEN verdict = 'unseen_session' AND has_too_late
      THEN 'late inbound: a message of the user came too late to be folded in; a rebuild does it'
    WHEN expected = 'in_service' AND sent_at < opened_at + INTERVAL '5 seconds'
      THEN 'edge: sent within 5 s of the opening of the session'
    WHEN expected = 'in_service' AND sent_at >= expires_at - INTERVAL '5 seconds'
      THEN 'edge: sent within 5 s of the end of the session'
    WHEN verdict = 'unseen_session' AND is_just_ended THEN 'edge: sent within 5 s of the end of a session'
    WHEN verdict = 'recharged' THEN 'policy: right under one that charges each message and has no paid sessions'
    WHEN verdict = 'unseen_session' AND is_capped
      THEN 'policy: right under one without a cap, which had closed the session'
    WHEN verdict = 'unseen_session' AND has_inbound
      THEN 'policy: right under one whose sessions last from the last message'
    WHEN expected = 'in_service' AND sent_at >= opened_at + INTERVAL '24 hours'
      THEN 'policy: right under one whose sessions last 24 hours from the first message'
    WHEN verdict = 'unseen_session' AND sent_at < known_from + INTERVAL '24 hours'
      THEN 'first day: the session may have been opened before anything of the account was recorded'
    WHEN verdict = 'unseen_session' AND is_silent
      THEN 'missed callbacks: in the 24 hours before it there is an hour with sends and without callbacks, or a gap'
    ELSE 'unexplained'
  END AS reason,
  state
FROM (
  SELECT
    m.account, m.user_id, m.message_token, m.session_id, m.sent_at, m.method, m.country, m.policy, m.expected,
    m.billing_status, m.billing_inferred, m.verdict, m.cost, m.currency, m.state, s.opened_at, s.expires_at,
    begun.known_from,
    bool_or(e.what = 'repeat' AND e.message_token = m.message_token) AS is_repeated,
    bool_or(e.is_skewed AND (e.what = 'send' AND e.message_token = m.message_token
      OR e.what = 'inbound' AND e.message_token = s.opened_by_token)) AS is_skewed,
    bool_or(e.what = 'inbound' AND e.message_token = s.opened_by_token AND e.received_at > m.sent_at) AS is_opened_late,
    bool_or(e.what = 'too_late' AND e.at <= m.sent_at AND e.at > m.sent_at - INTERVAL '24 hours') AS has_too_late,
    bool_or(e.what = 'inbound' AND e.at <= m.sent_at AND e.at > m.sent_at - INTERVAL '24 hours') AS has_inbound,
    bool_or(e.what = 'ended' AND e.at <= m.sent_at AND e.at > m.sent_at - INTERVAL '5 seconds') AS is_just_ended,
    bool_or(e.what = 'capped' AND e.at <= m.sent_at AND e.until > m.sent_at) AS is_capped,
    bool_or(silence.account IS NOT NULL) AS is_silent
  FROM (SELECT * FROM messages WHERE verdict <> 'agreed' AND sent_at >= $since) AS m
  LEFT JOIN (
    SELECT session_id, opened_at, expires_at, opened_by_token
    FROM sessions
    WHERE expires_at >= $since
  ) AS s
  ON m.session_id = s.session_id
  LEFT JOIN (
    SELECT account, user_id, message_token, event_time AS at, received_at, skewed AS is_skewed,
      CASE
        WHEN origin = 'callback' AND disposition = 'fact' THEN 'inbound'
        WHEN origin = 'callback' THEN 'too_late'
        WHEN disposition = 'duplicate' THEN 'repeat'
        ELSE 'send'
      END AS what,
      event_time AS until
    FROM events
    -- No policy has sessions that last longer.
    WHERE event_time + INTERVAL '31 days' >= $since AND (
      origin = 'callback' AND type = 'message' AND disposition IN ('fact', 'too_late')
      OR origin = 'call' AND (disposition = 'duplicate' OR disposition = 'fact' AND skewed)
    )
    UNION ALL
    SELECT account, user_id, opened_by_token, coalesce(closed_at, expires_at), opened_at, false,
      CASE close_reason WHEN 'cap' THEN 'capped' ELSE 'ended' END, expires_at
    FROM sessions
    WHERE kind = 'service' AND expires_at + INTERVAL '5 seconds' >= $since
  ) AS e
  ON m.account = e.account AND m.user_id = e.user_id
  LEFT JOIN (
    SELECT account, hour AS begins_at, hour + INTERVAL '1 hour' AS ends_at
    FROM (
      SELECT account, local_hour(received_at, 'UTC') AS hour, origin
      FROM events
      WHERE received_at + INTERVAL '2 days' >= $since
        AND (origin = 'callback' OR origin = 'call' AND disposition IN ('fact', 'too_late'))
    ) AS heard
    GROUP BY account, hour
    HAVING count(*) FILTER (WHERE origin = 'callback') = 0
    UNION ALL
    SELECT account, min(received_at), max(received_at)
    FROM events
    WHERE origin = 'counterbat' AND type IN ('gap.opened', 'gap.closed')
    GROUP BY account, split_part(event_id, '/', 1)
  ) AS silence
  ON m.account = silence.account AND m.verdict = 'unseen_session'
    AND silence.begins_at <= m.sent_at AND silence.ends_at > m.sent_at - INTERVAL '24 hours'
  LEFT JOIN (
    SELECT account, min(at) AS known_from
    FROM (
      SELECT account, min(sent_at) AS at FROM messages GROUP BY account
      UNION ALL
      SELECT account, min(opened_at) FROM sessions GROUP BY account
    ) AS firsts
    GROUP BY account
  ) AS begun
  ON m.account = begun.account
  GROUP BY
    m.account, m.user_id, m.message_token, m.session_id, m.sent_at, m.method, m.country, m.policy, m.expected,
    m.billing_status, m.billing_inferred, m.verdict, m.cost, m.currency, m.state, s.opened_at, s.expires_at,
    begun.known_from
) AS evidence
