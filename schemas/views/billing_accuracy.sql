-- Billing accuracy: how often Viber's bill is what the rules say, by account and UTC day a message was sent.
--
-- account        TEXT           the account
-- day            DATE           the day
-- messages       BIGINT         messages sent
-- judged         BIGINT         of these with a billing_status that says something
-- agreed         BIGINT         of these as the rules say
-- overcharged    BIGINT         charged in a service session
-- recharged      BIGINT         charged in a paid session
-- missed_session BIGINT         counted as free out of session in a service session
-- unseen_session BIGINT         counted as in session where none is known
-- inferred       BIGINT         disagreeing messages of broadcasts, which have one billing_status for a whole list
-- accuracy       DOUBLE         agreed of judged; NULL where none was judged
-- at_stake       DECIMAL(28,6)  what was charged against the rules: the costs of overcharged and recharged messages; NULL where
--                               they are in several currencies, which billing_audit keeps apart
-- currency       TEXT           of that
-- unpriced       BIGINT         of those messages without a cost, which is missing in that sum
SELECT
  account,
  local_date(sent_at, 'UTC') AS day,
  count(*) AS messages,
  count(*) FILTER (WHERE verdict <> 'unreported') AS judged,
  count(*) FILTER (WHERE verdict = 'agreed') AS agreed,
  count(*) FILTER (WHERE verdict = 'overcharged') AS overcharged,
  count(*) FILTER (WHERE verdict = 'recharged') AS recharged,
  count(*) FILTER (WHERE verdict = 'missed_session') AS missed_session,
  count(*) FILTER (WHERE verdict = 'unseen_session') AS unseen_session,
  count(*) FILTER (WHERE billing_inferred AND verdict NOT IN ('agreed', 'unreported')) AS inferred,
  count(*) FILTER (WHERE verdict = 'agreed') / CAST(nullif(count(*) FILTER (WHERE verdict <> 'unreported'), 0) AS DOUBLE)
    AS accuracy,
  CASE WHEN count(DISTINCT currency) FILTER (WHERE verdict IN ('overcharged', 'recharged')) <= 1
    THEN sum(cost) FILTER (WHERE verdict IN ('overcharged', 'recharged')) END AS at_stake,
  CASE WHEN count(DISTINCT currency) FILTER (WHERE verdict IN ('overcharged', 'recharged')) = 1
    THEN max(currency) FILTER (WHERE verdict IN ('overcharged', 'recharged')) END AS currency,
  count(*) FILTER (WHERE verdict IN ('overcharged', 'recharged') AND cost IS NULL) AS unpriced
FROM messages
GROUP BY account, local_date(sent_at, 'UTC')
