-- Expiring sessions: open sessions whose window ends soon; expiring_sessions(15) are those of the next 15 minutes. What is
-- sent to these users before that is free.
--
-- session_id    TEXT       as in `sessions`, like all columns but the last
-- account       TEXT       the account
-- user_id       TEXT       Viber's id of the user
-- country       TEXT       where the user was when it opened
-- kind          TEXT       service or paid
-- opened_at     TIMESTAMP  start of the window
-- expires_at    TIMESTAMP  end of the window, not part of it
-- inbound       INT        messages of the user in it
-- outbound      INT        messages to the user in it
-- last_event_at TIMESTAMP  the last of these
-- policy        TEXT       the policy it follows
-- seconds_left  BIGINT     until the window ends
--
-- $minutes      INT        the parameter: 60 where none is given
SELECT
  session_id, account, user_id, country, kind, opened_at, expires_at, inbound, outbound, last_event_at, policy,
  CAST(date_part('epoch', expires_at) - date_part('epoch', now()) AS BIGINT) AS seconds_left
FROM sessions
WHERE state = 'open' AND now() < expires_at AND expires_at <= now() + $minutes
