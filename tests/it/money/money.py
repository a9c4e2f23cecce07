"""What the messages of a golden history cost under a price list, and their sessions, by the letter of the tariff.

usage: money.py HISTORY POLICY PRICES.csv
Shares no code with Counterbat. Prints {"messages": [...], "sessions": [...]}: sums by account, UTC month, country, policy and
currency, amounts as text with six decimals.
"""
import csv, gzip, json, sys
from collections import defaultdict
from datetime import datetime, timezone
from decimal import Decimal, getcontext

getcontext().prec = 60
DELIVERED = {"counterbat", "viber-2024"}  # charged when delivered; the others when sent
COLUMN = Decimal(10) ** 12  # decimal(18,6) holds less


def rows(history, table, policy):
    with gzip.open(f"{history}/{table}.{policy}.ndjson.gz", "rt") as file:
        return [json.loads(line) for line in file]


def time(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def price_list(path):
    prices = defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            start = row["valid_from"] or "0001-01-01"
            start = datetime.fromisoformat(start).replace(tzinfo=timezone.utc)
            prices[row["country"]].append((start, Decimal(row["price"]), row["currency"]))
    return prices


def price(prices, country, at):
    for name in (country, "*"):
        begun = [entry for entry in prices.get(name, []) if entry[0] <= at]
        if begun:
            return max(begun)[1:]
    return None, None


def text(amount):
    return None if amount is None else f"{amount:.6f}"


def total(amounts):
    known = [amount for amount in amounts if amount is not None]
    return text(sum(known)) if known else None


def main(history, policy, path):
    prices = price_list(path)
    groups, of_session = defaultdict(list), defaultdict(list)
    for row in rows(history, "messages", policy):
        amount, currency = price(prices, row["country"], time(row["sent_at"]))
        charged = row["billing_status"] == 5
        due = policy not in DELIVERED or row["delivered_at"] is not None
        cost = (amount if due or amount is None else Decimal(0)) if charged else Decimal(0)
        groups[row["account"], row["sent_at"][:7], row["country"], row["policy"], currency].append((amount, cost, charged))
        of_session[row["session_id"]].append((cost, currency))
    messages = [
        dict(account=account, month=month, country=country, policy=name, currency=currency, messages=len(found),
             charged=sum(charged for _, _, charged in found), unpriced=sum(cost is None for _, cost, _ in found),
             price=total([amount for amount, _, _ in found]), cost=total([cost for _, cost, _ in found]))
        for (account, month, country, name, currency), found in groups.items()
    ]
    groups = defaultdict(list)
    for row in rows(history, "sessions", policy):
        found = of_session[row["session_id"]]
        paid = {currency for cost, currency in found if cost}
        named = {currency for _, currency in found if currency}
        cost = None if len(paid) > 1 or any(cost is None for cost, _ in found) else sum((c for c, _ in found), Decimal(0))
        if cost is not None and cost >= COLUMN:
            cost = None
        one = paid or named
        currency = next(iter(one)) if len(one) == 1 else None
        groups[row["account"], row["opened_at"][:7], row["country"], row["policy"], currency].append(cost)
    sessions = [
        dict(account=account, month=month, country=country, policy=name, currency=currency, sessions=len(costs),
             unpriced=sum(cost is None for cost in costs), cost=total(costs))
        for (account, month, country, name, currency), costs in groups.items()
    ]
    print(json.dumps({"messages": messages, "sessions": sessions}))


main(*sys.argv[1:])
