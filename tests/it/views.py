"""What the views must answer of a golden history, computed from its rows and events, against what they answered.

views.py HISTORY POLICY LATENESS_DAYS WATERMARK_MS [PRICES.csv] reads the answers from standard input: a JSON object, name of the view
(and argument) → rows. Without a price list no charged message has a cost.
"""

import csv
import gzip
import json
import math
import pathlib
import re
import sys
from collections import Counter, defaultdict
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
FREE = {"viber-2022": 10_000}
ON_DELIVERY = ("counterbat", "viber-2024")
FEES = {"viber-2024": "100.000000"}


def lines(path):
    with gzip.open(GOLDEN / path) as file:
        return [json.loads(line) for line in file if line.strip()]


def ms(text):
    return None if text is None else (datetime.fromisoformat(text.replace("Z", "+00:00")) - EPOCH) // timedelta(milliseconds=1)


def rfc(at_ms):
    if at_ms is None:
        return None
    return (EPOCH + timedelta(milliseconds=at_ms)).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at_ms % 1000:03d}Z"


def local(at_ms, zone):
    return (EPOCH + timedelta(milliseconds=at_ms)).astimezone(ZoneInfo(zone))


def day(at_ms, zone="UTC"):
    return local(at_ms, zone).strftime("%Y-%m-%d")


def month(at_ms, zone="UTC"):
    return local(at_ms, zone).strftime("%Y-%m-01")


def hour(at_ms, zone="UTC"):
    time = local(at_ms, zone)
    return rfc(at_ms - (time.minute * 60 + time.second) * 1000 - at_ms % 1000)


def month_end_ms(first):
    year, number, _ = map(int, first.split("-"))
    return ms(f"{year + number // 12}-{number % 12 + 1:02d}-01T00:00:00Z")


def percentile(values, share):
    """The least of the values that such a share of them does not exceed."""
    return sorted(values)[math.ceil(Fraction(share) * len(values)) - 1] if values else None


def number(value):
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value) else None


def prices_of(path):
    """Country → (start in ms, price, currency), the latest start last."""
    prices = defaultdict(list)
    if path:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                start = ms(row["valid_from"] + "T00:00:00Z") if row["valid_from"] else -(2**60)
                prices[row["country"]].append((start, Decimal(row["price"]), row["currency"]))
    return {country: sorted(entries) for country, entries in prices.items()}


def price_at(prices, country, at_ms):
    for name in (country, "*"):
        begun = [entry for entry in prices.get(name, []) if entry[0] <= at_ms]
        if begun:
            return begun[-1][1:]
    return None, None


def text(amount):
    return None if amount is None else f"{amount:.6f}"


def total(amounts):
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Decimal(0)) if known else None


def is_against(row):
    return row["verdict"] in ("overcharged", "recharged")


class History:
    def __init__(self, name, policy, prices):
        self.messages = lines(f"{name}/messages.{policy}.ndjson.gz")
        self.sessions = lines(f"{name}/sessions.{policy}.ndjson.gz")
        for row in self.messages:
            row["at"] = ms(row["sent_at"])
            row["price"], row["currency"] = price_at(prices, row["country"], row["at"])
            row["due"] = row["price"]
            if row["due"] is not None and policy in ON_DELIVERY and row["delivered_at"] is None:
                row["due"] = Decimal(0)
            row["cost"] = row["due"] if row["billing_status"] == 5 else Decimal(0)
        for row in self.sessions:
            row["at"], row["end"] = ms(row["opened_at"]), ms(row["closed_at"])
        self.policy, self.known = policy, set()
        self.callbacks, self.calls = [], []
        for event in lines(f"{name}/events.ndjson.gz"):
            kind, account = event["type"], event["source"].removeprefix("/accounts/")
            if kind.startswith("com.viber."):
                self.read(event, kind.rsplit(".", 1)[1], account, kind.startswith("com.viber.callback."))

    def read(self, event, kind, account, is_callback):
        """Notes a record, with `t` where it is a fact."""
        data, user, time = event.get("data"), event.get("subject"), ms(event["time"])
        record = {"id": event["id"], "account": account, "user": user, "kind": kind, "received": time, "t": None}
        (self.callbacks if is_callback else self.calls).append(record)
        if not isinstance(data, dict):
            return
        answer = data if is_callback else data.get("response")
        if not isinstance(answer, dict):
            return
        token = number(answer.get("message_token"))
        record["token"], record["status"] = token, number(answer.get("status"))
        if user is None or token is None or not 0 <= token < 2**64:
            return
        if is_callback and kind in ("message", "delivered", "seen", "failed", "subscribed", "unsubscribed"):
            told = answer.get("timestamp")
            good = type(told) is int and told > 0 and time - 30 * DAY_MS <= told <= time + 300_000
            self.note(record, (account, user, token, kind), told if good else time)
        if not is_callback and kind in ("send_message", "broadcast_message"):
            if record["status"] == 0 and number(data.get("receiver_status", 0)) == 0:
                self.note(record, (account, user, token), time)

    def note(self, record, identity, t):
        if identity not in self.known:
            self.known.add(identity)
            record["t"] = t


def usage(history, unit, zone):
    rows = defaultdict(Counter)
    for event in history.callbacks:
        if event["kind"] == "message" and event["t"] is not None:
            rows[event["account"], unit(event["t"], zone)]["inbound"] += 1
    for row in history.messages:
        count = rows[row["account"], unit(row["at"], zone)]
        count["outbound"] += 1
        count[row["expected"]] += 1
        count["charged"] += row["billing_status"] == 5
        count["overcharged"] += row["verdict"] == "overcharged"
        for told in ("delivered", "seen", "failed"):
            count[told] += row[f"{told}_at"] is not None
    for row in history.sessions:
        rows[row["account"], unit(row["at"], zone)][row["kind"] + "_sessions"] += 1
    names = ["inbound", "outbound", "in_service", "in_paid", "out_of_session", "charged", "overcharged", "delivered", "seen", "failed",
             "service_sessions", "paid_sessions"]
    column = {hour: "hour", day: "day", month: "month"}[unit]
    return [{"account": account, column: at} | {name: count[name] for name in names} for (account, at), count in rows.items()]


def spend(history, zone):
    rows = defaultdict(list)
    for row in history.messages:
        if row["billing_status"] == 5:
            rows[row["account"], day(row["at"], zone), row["country"], row["currency"]].append(row)
    return [
        {"account": account, "day": at, "country": country, "currency": currency, "charged": len(charged),
         "delivered": sum(row["delivered_at"] is not None for row in charged), "disputed": sum(map(is_against, charged)),
         "unpriced": sum(row["cost"] is None for row in charged), "cost": text(total(row["cost"] for row in charged)),
         "disputed_cost": text(total(row["cost"] for row in charged if is_against(row)))}
        for (account, at, country, currency), charged in rows.items()
    ]


def numbered(history):
    """Out-of-session messages with which of their month they are."""
    seen, nth = Counter(), {}
    for row in sorted(history.messages, key=lambda row: (row["at"], row["message_token"], row["user_id"])):
        if row["expected"] == "out_of_session":
            seen[row["account"], month(row["at"])] += 1
            nth[row["account"], row["user_id"], row["message_token"]] = seen[row["account"], month(row["at"])]
    return nth


def predictions(history):
    nth, free = numbered(history), FREE.get(history.policy, 0)
    for row in history.messages:
        n = nth.get((row["account"], row["user_id"], row["message_token"]))
        charged = n is not None and n > free
        yield {
            "account": row["account"], "user_id": row["user_id"], "message_token": str(row["message_token"]), "sent_at": row["sent_at"],
            "month": month(row["at"]), "policy": row["policy"], "expected": row["expected"], "nth": n, "free_quota": free, "charged": charged,
            "price": text(row["price"]), "cost": text(row["due"] if charged else Decimal(0)), "currency": row["currency"],
            "billing_status": row["billing_status"], "reported_charged": row["billing_status"] == 5,
        }


def quota(history):
    nth, free = numbered(history), FREE.get(history.policy, 0)
    rows, refusals, firsts = defaultdict(Counter), defaultdict(set), {}
    for row in history.messages:
        key = row["account"], month(row["at"])
        n = nth.get((row["account"], row["user_id"], row["message_token"]))
        rows[key]["messages"] += 1
        rows[key]["out"] += n is not None
        rows[key]["free"] += row["billing_status"] in (3, 4)
        rows[key]["charged"] += row["billing_status"] == 5
        rows[key]["early"] += row["billing_status"] == 5 and n is not None and n <= free
    for call in history.calls:
        if call["kind"] in ("send_message", "broadcast_message") and call.get("status") in (23, 24):
            key = call["account"], month(call["received"])
            refusals[key, call["status"]].add(call["id"])
            firsts[key] = min(firsts.get(key, call["received"]), call["received"])
            rows[key]["refused"] += 1
    for (account, first), count in rows.items():
        end = month_end_ms(first)
        days = (end - ms(f"{first}T00:00:00Z")) / DAY_MS
        yield {
            "account": account, "month": first, "policy": history.policy if count["messages"] else None,
            "free_quota": free if count["messages"] else None, "out_of_session": count["out"],
            "used": min(count["out"], free) if count["messages"] else None,
            "free_left": max(free - count["out"], 0) if count["messages"] else None,
            "reported_free": count["free"], "reported_charged": count["charged"], "charged_in_quota": count["early"],
            "refused_free": len(refusals[(account, first), 23]), "refused_balance": len(refusals[(account, first), 24]),
            "first_refused_at": rfc(firsts.get((account, first))), "as_of": rfc(end),
            "per_day": count["out"] / days if count["out"] else None, "exhausted_at": None, "exhausts_at": None,
        }


def accuracy(history):
    rows, against = defaultdict(Counter), defaultdict(list)
    for row in history.messages:
        count = rows[row["account"], day(row["at"])]
        if is_against(row):
            against[row["account"], day(row["at"])].append((row["cost"], row["currency"]))
        count["messages"] += 1
        count["judged"] += row["verdict"] != "unreported"
        count[row["verdict"]] += 1
        count["inferred"] += row["billing_inferred"] and row["verdict"] not in ("agreed", "unreported")
    verdicts = ["agreed", "overcharged", "recharged", "missed_session", "unseen_session"]
    for (account, at), count in rows.items():
        costs = [cost for cost, _ in against[account, at]]
        currencies = {currency for _, currency in against[account, at]} - {None}
        yield {"account": account, "day": at, "messages": count["messages"], "judged": count["judged"], "inferred": count["inferred"],
               "accuracy": count["agreed"] / count["judged"] if count["judged"] else None,
               "at_stake": text(total(costs)) if len(currencies) <= 1 else None,
               "currency": currencies.pop() if len(currencies) == 1 else None, "unpriced": costs.count(None)} | {verdict: count[verdict] for verdict in verdicts}


def audit(history):
    for row in history.messages:
        if row["verdict"] != "agreed":
            yield {name: row[name] for name in ("account", "user_id", "session_id", "sent_at", "method", "country", "policy", "expected",
                                                "billing_status", "verdict")} | {
                "message_token": str(row["message_token"]), "at_stake": text(row["cost"] if is_against(row) else Decimal(0)),
                "currency": row["currency"], "state": "settled",
            }


def completeness(history):
    rows = defaultdict(Counter)
    for call in history.calls:
        if call["t"] is not None:
            rows[call["account"], hour(call["received"])]["sends"] += 1
    sent = {(row["account"], row["user_id"], row["message_token"]) for row in history.messages}
    unsent = {}
    for event in history.callbacks:
        count = rows[event["account"], hour(event["received"])]
        count["callbacks"] += 1
        count["receipts"] += event["kind"] in ("delivered", "seen", "failed")
        key = event["account"], event["user"], event.get("token")
        if event["kind"] in ("delivered", "seen") and event["t"] is not None and key not in sent:
            unsent[key] = min(unsent.get(key, event["received"]), event["received"])
    for (account, _, _), at in unsent.items():
        rows[account, hour(at)]["unsent"] += 1
    for (account, at), count in rows.items():
        yield {"account": account, "hour": at, "is_silent": count["sends"] > 0 and count["callbacks"] == 0, "unknown_calls": 0,
               "gap_sends": 0, "gap_until": None} | {name: count[name] for name in ("sends", "callbacks", "receipts", "unsent")}


def first_response(history):
    rows = defaultdict(list)
    for row in history.sessions:
        if row["kind"] == "service":
            rows[row["account"], day(row["at"])].append(row["first_response_ms"])
    for (account, at), all_of_them in rows.items():
        answered = [value for value in all_of_them if value is not None]
        yield {"account": account, "day": at, "sessions": len(all_of_them), "answered": len(answered),
               "p50_ms": percentile(answered, "0.5"), "p90_ms": percentile(answered, "0.9"), "p99_ms": percentile(answered, "0.99"),
               "max_ms": max(answered, default=None)}


def funnel(history):
    rows = defaultdict(list)
    for row in history.messages:
        rows[row["account"], day(row["at"]), row["method"]].append(row)
    for (account, at, method), sent in rows.items():
        delivered = [row for row in sent if row["delivered_at"] or row["seen_at"]]
        seen = sum(row["seen_at"] is not None for row in sent)
        failed = sum(row["failed_at"] is not None and row not in delivered for row in sent)
        took = [ms(row["delivered_at"]) - row["at"] for row in sent if row["delivered_at"]]
        yield {"account": account, "day": at, "method": method, "sent": len(sent), "delivered": len(delivered), "seen": seen, "failed": failed,
               "pending": 0, "lost": len(sent) - len(delivered) - failed, "delivered_share": len(delivered) / len(sent),
               "seen_share": seen / len(delivered) if delivered else None, "delivery_p50_ms": percentile(took, "0.5"),
               "delivery_p90_ms": percentile(took, "0.9")}


def avoidable(history, minutes):
    sessions = defaultdict(list)
    for row in history.sessions:
        if row["kind"] == "service":
            sessions[row["account"], row["user_id"]].append(row)
    for row in history.messages:
        if row["expected"] != "out_of_session" or row["billing_status"] != 5:
            continue
        near = []
        for session in sessions[row["account"], row["user_id"]]:
            side = "before" if session["at"] > row["at"] else "after"
            distance = session["at"] - row["at"] if side == "before" else row["at"] - session["end"]
            if distance <= minutes * 60_000:
                near.append((distance, session["session_id"], side))
        if near:
            distance, session_id, side = min(near)
            yield {"account": row["account"], "user_id": row["user_id"], "message_token": str(row["message_token"]), "sent_at": row["sent_at"],
                   "session_id": session_id, "side": side, "distance_ms": distance, "country": row["country"],
                   "cost": text(row["cost"]), "currency": row["currency"], "state": "settled"}


def statement(history, lateness_days, watermark):
    months = defaultdict(lambda: {"messages": [], "end": 0})
    for row in history.messages:
        entry = months[row["account"], month(row["at"])]
        entry["messages"].append(row)
        entry["end"] = max(entry["end"], row["at"])
    for row in history.sessions:
        entry = months[row["account"], month(row["at"])]
        entry["end"] = max(entry["end"], row["end"])
    # A month without any has its fee too, for a year.
    for account, first in list(months):
        later = first
        for _ in range(12):
            later = month(month_end_ms(later))
            months[account, later]
    for (account, first), entry in months.items():
        settled = max(entry["end"] + (14 + lateness_days) * DAY_MS, month_end_ms(first) + lateness_days * DAY_MS)
        if settled <= watermark and (entry["messages"] or history.policy in FEES):
            named = Counter(row["currency"] for row in entry["messages"] if row["billing_status"] == 5 and row["currency"])
            usual = min(named, key=lambda currency: (-named[currency], currency), default="EUR")
            parts = defaultdict(list)
            if history.policy in FEES:
                parts["EUR"] = []
            for row in entry["messages"]:
                parts[row["billing_status"] == 5 and row["currency"] or usual].append(row)
            for currency, messages in parts.items():
                charged = [row for row in messages if row["billing_status"] == 5]
                yield {"account": account, "month": first, "currency": currency, "messages": len(messages), "charged": len(charged),
                       "unpriced": sum(row["cost"] is None for row in charged),
                       "disputed": text(total(row["cost"] for row in charged if is_against(row)) or 0),
                       "cost": text(total(row["cost"] for row in charged) or 0),
                       "fee": FEES.get(history.policy, "0.000000") if currency == "EUR" else "0.000000", "settled_at": rfc(settled)}


def same(wanted, found):
    if isinstance(wanted, float) and isinstance(found, (int, float)):
        return math.isclose(wanted, found, rel_tol=1e-9)
    return wanted == found


def main():
    name, policy, lateness_days, watermark = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    history = History(name, policy, prices_of(sys.argv[5] if len(sys.argv) > 5 else None))
    answers = json.load(sys.stdin)
    views = {
        "usage_hourly": (usage(history, hour, "UTC"), ["account", "hour"]),
        "usage_hourly('Asia/Kolkata')": (usage(history, hour, "Asia/Kolkata"), ["account", "hour"]),
        "usage_daily": (usage(history, day, "UTC"), ["account", "day"]),
        "usage_daily('Europe/Kyiv')": (usage(history, day, "Europe/Kyiv"), ["account", "day"]),
        "usage_monthly": (usage(history, month, "UTC"), ["account", "month"]),
        "usage_monthly('America/New_York')": (usage(history, month, "America/New_York"), ["account", "month"]),
        "spend_daily": (spend(history, "UTC"), ["account", "day", "country", "currency"]),
        "spend_daily('Europe/Kyiv')": (spend(history, "Europe/Kyiv"), ["account", "day", "country", "currency"]),
        "predictions": (predictions(history), ["account", "user_id", "message_token"]),
        "quota_monthly": (quota(history), ["account", "month"]),
        "billing_accuracy": (accuracy(history), ["account", "day"]),
        "billing_audit": (audit(history), ["account", "user_id", "message_token"]),
        "completeness": (completeness(history), ["account", "hour"]),
        "first_response": (first_response(history), ["account", "day"]),
        "delivery_funnel": (funnel(history), ["account", "day", "method"]),
        "avoidable_cost": (avoidable(history, 60), ["account", "user_id", "message_token"]),
        "avoidable_cost(600)": (avoidable(history, 600), ["account", "user_id", "message_token"]),
        "statement_monthly": (statement(history, lateness_days, watermark), ["account", "month", "currency"]),
    }
    assert views.keys() == answers.keys(), views.keys() ^ answers.keys()
    wrong = []
    for view, (rows, key) in views.items():
        wanted = {tuple(str(row[part]) for part in key): row for row in rows}
        found = {tuple(str(row[part]) for part in key): row for row in answers[view]}
        if len(found) != len(answers[view]):
            wrong.append(f"{view}: several rows of one key")
        for row_key in sorted(wanted.keys() ^ found.keys())[:3]:
            wrong.append(f"{view}: {row_key} is {'missing' if row_key in wanted else 'too many'}")
        differing = [
            f"{view}: {row_key}: {column} is {found[row_key].get(column, 'no column')!r}, wanted {value!r}"
            for row_key in sorted(wanted.keys() & found.keys())
            for column, value in wanted[row_key].items()
            if not same(value, found[row_key].get(column, "no column"))
        ]
        wrong += differing[:3]
        print(f"{view}: {len(wanted)} rows", file=sys.stderr)
    sys.exit("\n".join(wrong) or None)


main()
