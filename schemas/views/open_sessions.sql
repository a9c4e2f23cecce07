-- Open sessions: those that are open as far as the events go and whose window has not passed by the clock either.
--
-- session_id      TEXT       as in `sessions`, like all columns
-- account         TEXT       the account
-- user_id         TEXT       Viber's id of the user
-- country         TEXT       where the user was when it opened
-- kind            TEXT       service or paid
-- opened_at       TIMESTAMP  start of the window
-- expires_at      TIMESTAMP  end of the window, not part of it
-- opened_by_token BIGINT     the message that opened it
-- inbound         INT        messages of the user in it
-- outbound        INT        messages to the user in it
-- last_event_at   TIMESTAMP  the last of these
-- policy          TEXT       the policy it follows
SELECT
  session_id, account, user_id, country, kind, opened_at, expires_at, opened_by_token, inbound, outbound,
  last_event_at, policy
FROM sessions
WHERE state = 'open' AND now() < expires_at
