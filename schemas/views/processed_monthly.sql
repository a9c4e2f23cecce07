-- Processed monthly: how much went through Counterbat, by account and UTC month of arrival. Everything archived
-- counts, whatever became of it.
--
-- account    TEXT    the account
-- month      DATE    the first day of the month
-- requests   BIGINT  calls of the API; a broadcast counts once per receiver
-- callbacks  BIGINT  callbacks of Viber
SELECT
  account,
  month_of(date) AS month,
  count(*) FILTER (WHERE origin = 'call') AS requests,
  count(*) FILTER (WHERE origin = 'callback') AS callbacks
FROM events
WHERE origin IN ('call', 'callback')
GROUP BY account, month_of(date)
