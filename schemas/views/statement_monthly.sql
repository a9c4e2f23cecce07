-- Statement monthly: what a UTC month has cost, once nothing can change it any more but a rebuild: every session that was
-- opened in it and every message that was sent in it is settled, in all partitions of the log. Other months are not there.
-- One without a message has a row where the policy has a fee, up to 12 months after the account's last.
--
-- account    TEXT           the account
-- month      DATE           the first day of the month
-- currency   TEXT           of cost and fee; messages that were not charged count with the currency of most that were, and
--                           where none was it is EUR, in which Viber bills
-- messages   BIGINT         messages sent
-- charged    BIGINT         of these charged (billing_status 5)
-- unpriced   BIGINT         of these without a cost, for no price is known: what they cost is missing in the sums
-- disputed   DECIMAL(28,6)  what messages cost that were charged against the rules: overcharged, recharged
-- cost       DECIMAL(28,6)  what the charged messages cost
-- fee        DECIMAL(28,6)  the monthly fee of the policy that `settled_months` tells, in the row in EUR
-- settled_at TIMESTAMP      from this watermark on the month is settled
SELECT
  account,
  month,
  currency,
  CAST(sum(messages) AS BIGINT) AS messages,
  CAST(sum(charged) AS BIGINT) AS charged,
  CAST(sum(unpriced) AS BIGINT) AS unpriced,
  CAST(sum(disputed) AS DECIMAL(28, 6)) AS disputed,
  CAST(sum(cost) AS DECIMAL(28, 6)) AS cost,
  CAST(sum(fee) AS DECIMAL(28, 6)) AS fee,
  max(settled_at) AS settled_at
FROM (
  SELECT
    account,
    month,
    coalesce(
      currency,
      first_value(currency) OVER (PARTITION BY account, month ORDER BY currency IS NULL, messages DESC, currency),
      'EUR'
    ) AS currency,
    messages,
    charged,
    unpriced,
    disputed,
    cost,
    CAST(0 AS DECIMAL(18, 6)) AS fee,
    settled_at
  FROM (
    SELECT
      sums.*,
      months.settled_at
    FROM (
      SELECT
        account,
        month_of(local_date(sent_at, 'UTC')) AS month,
        CASE WHEN billing_status = 5 THEN currency END AS currency,
        count(*) AS messages,
        count(*) FILTER (WHERE billing_status = 5) AS charged,
        count(*) FILTER (WHERE billing_status = 5 AND cost IS NULL) AS unpriced,
        coalesce(sum(cost) FILTER (WHERE billing_status = 5 AND verdict IN ('overcharged', 'recharged')), 0) AS disputed,
        coalesce(sum(cost) FILTER (WHERE billing_status = 5), 0) AS cost
      FROM messages
      GROUP BY account, month_of(local_date(sent_at, 'UTC')), CASE WHEN billing_status = 5 THEN currency END
    ) AS sums
    JOIN settled_months AS months ON sums.account = months.account AND sums.month = months.month
  ) AS settled
  UNION ALL
  SELECT account, month, 'EUR', 0, 0, 0, 0, 0, fee, settled_at
  FROM settled_months
  WHERE fee > 0
) AS parts
GROUP BY account, month, currency
