-- Predictions: what the policy says of each message: out of session it is charged beyond the free quota of the account
-- and UTC month, all others are free. A condition on `month` reads that month only.
--
-- account          TEXT           the account
-- user_id          TEXT           the receiver
-- message_token    BIGINT         the message
-- sent_at          TIMESTAMP      when Viber accepted it
-- month            DATE           the first day of its UTC month
-- country          TEXT           of the receiver
-- policy           TEXT           the policy it follows
-- expected         TEXT           in_service, in_paid or out_of_session
-- nth              BIGINT         which of the out-of-session messages of account and month it is, by time, token and
--                                 receiver; NULL of others
-- free_quota       BIGINT         how many of these the policy has free; NULL where this process does not know the policy
-- charged          BOOLEAN        whether it is charged; NULL where that is not known
-- price            DECIMAL(18,6)  what it costs when it is
-- cost             DECIMAL(18,6)  what it costs: 0 while not delivered, where that is what is charged; NULL where it is charged
--                                 and no price is known
-- currency         TEXT           of both
-- billing_status   INT            what Viber reported
-- reported_charged BOOLEAN        whether Viber charged it
-- reported_cost    DECIMAL(18,6)  what it costs by what Viber reported
-- state            TEXT           provisional or settled
SELECT
  account,
  user_id,
  message_token,
  sent_at,
  month,
  country,
  policy,
  expected,
  nth,
  free_out_of_session_per_month AS free_quota,
  CASE WHEN nth IS NULL THEN false ELSE nth > free_out_of_session_per_month END AS charged,
  price,
  CASE
    WHEN nth IS NULL OR nth <= free_out_of_session_per_month THEN CAST(0 AS DECIMAL(18, 6))
    WHEN charged_on = 'delivered' AND delivered_at IS NULL AND price IS NOT NULL THEN CAST(0 AS DECIMAL(18, 6))
    WHEN nth > free_out_of_session_per_month THEN price
  END AS cost,
  currency,
  billing_status,
  billing_status IS NOT DISTINCT FROM 5 AS reported_charged,
  reported_cost,
  state
FROM (
  SELECT
    account, user_id, message_token, sent_at, month, country, policy, expected, price, currency, billing_status,
    reported_cost, state, delivered_at,
    -- Tokens are unsigned in 64 bits: the negative ones are the greatest.
    CAST(row_number() OVER (PARTITION BY account, month ORDER BY sent_at, message_token < 0, message_token, user_id)
      AS BIGINT) AS nth
  FROM (
    SELECT
      account, user_id, message_token, sent_at, month_of(local_date(sent_at, 'UTC')) AS month, country, policy, expected,
      price, currency, billing_status, cost AS reported_cost, state, delivered_at
    FROM messages
    WHERE expected = 'out_of_session'
  ) AS outside
  UNION ALL
  SELECT
    account, user_id, message_token, sent_at, month_of(local_date(sent_at, 'UTC')), country, policy, expected, price,
    currency, billing_status, cost, state, delivered_at, NULL
  FROM messages
  WHERE expected <> 'out_of_session'
) AS counted
LEFT JOIN policies ON counted.policy = policies.name
