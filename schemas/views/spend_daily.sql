-- Spend daily: what Viber charged, by the day a message was sent. spend_daily('Europe/Kyiv') counts by the days of that
-- time zone. Days and countries without a charged message are not there.
--
-- account       TEXT           the account
-- day           DATE           the day
-- country       TEXT           of the receivers; NULL where it is not known
-- currency      TEXT           of the costs; NULL where no price is known
-- charged       BIGINT         messages with billing_status 5
-- delivered     BIGINT         of these delivered so far
-- disputed      BIGINT         of these charged against the rules: overcharged, recharged
-- unpriced      BIGINT         of these without a cost, for no price is known: what they cost is missing in the sums
-- cost          DECIMAL(28,6)  what they cost; NULL where not one has a cost
-- disputed_cost DECIMAL(28,6)  what the disputed ones cost
--
-- $time_zone    TEXT           the parameter: 'UTC' where none is given
SELECT
  account,
  local_date(sent_at, $time_zone) AS day,
  country,
  currency,
  count(*) AS charged,
  count(delivered_at) AS delivered,
  count(*) FILTER (WHERE verdict IN ('overcharged', 'recharged')) AS disputed,
  count(*) FILTER (WHERE cost IS NULL) AS unpriced,
  sum(cost) AS cost,
  sum(cost) FILTER (WHERE verdict IN ('overcharged', 'recharged')) AS disputed_cost
FROM messages
WHERE billing_status = 5
GROUP BY account, local_date(sent_at, $time_zone), country, currency
