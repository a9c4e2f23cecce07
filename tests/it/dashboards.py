"""Runs every query of the dashboards' SQL panels, as Grafana's data source for PostgreSQL would, and names those with rows."""

import json
import re
import sys
from pathlib import Path

import psycopg

ALL_TIME = ("2020-01-01T00:00:00Z", "2100-01-01T00:00:00Z")


def expanded(sql, accounts):
    """A query as Grafana sends it: macros and variables replaced."""
    sql = re.sub(r"\$__timeFilter\(([^)]*)\)", rf"\1 BETWEEN '{ALL_TIME[0]}' AND '{ALL_TIME[1]}'", sql)
    sql = sql.replace("$account", ",".join("'" + account.replace("'", "''") + "'" for account in accounts))
    assert "$" not in sql, f"a macro or variable is left: {sql}"
    return sql


def main():
    with psycopg.connect("", autocommit=True) as connection:
        for path in sorted(Path(sys.argv[1]).glob("*.json")):
            dashboard = json.loads(path.read_text())
            kinds = {one["name"]: one for one in dashboard["templating"]["list"]}
            chosen = kinds["account"]["query"]
            if not isinstance(chosen, str):
                continue
            accounts = [row[0] for row in connection.execute(chosen).fetchall()]
            assert accounts, f"{path.name}: no account to choose from"
            for panel in dashboard["panels"]:
                for target in panel.get("targets", []):
                    found = connection.execute(expanded(target["rawSql"], accounts)).fetchall()
                    print(f"{path.stem}/{panel['title']}/{len(found)}")


main()
