"""Apache Superset against a server that speaks as PostgreSQL does: superset.py FOLDER [URL] [OPTION...].

Lays Superset's own database and settings down in FOLDER, unless they are there, and, with a URL for SQLAlchemy (or
$SUPERSET_TEST_URL), runs Superset on it, asks what a person with its pages would ask, and prints one JSON object of what it
found, every value as text. Without a URL it only prepares FOLDER. It runs with the Python of the environment that has Superset.
"""

import argparse
import ctypes
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import time

import requests

# They say where they are themselves: a prepared FOLDER can be copied.
SETTINGS = """\
import os

SECRET_KEY = {key!r}
SQLALCHEMY_DATABASE_URI = "sqlite:///" + os.path.join(os.path.dirname(os.path.abspath(__file__)), "superset.db")
WTF_CSRF_ENABLED = False
TALISMAN_ENABLED = False
CONTENT_SECURITY_POLICY_WARNING = False
LOG_LEVEL = "WARNING"
CACHE_CONFIG = DATA_CACHE_CONFIG = {{"CACHE_TYPE": "NullCache"}}
FILTER_STATE_CACHE_CONFIG = EXPLORE_FORM_DATA_CACHE_CONFIG = {{"CACHE_TYPE": "SimpleCache"}}
"""
USER, PASSWORD = "admin", "admin"


class Failed(Exception):
    pass


def dies_with_us():
    """In a child, before its program: it is told to end when this process is gone, however that went."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def program(name):
    return str(pathlib.Path(sys.executable).with_name(name))


def environment(folder):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "FLASK", "SUPERSET", "PYTHON"))}
    return kept | {
        "SUPERSET_CONFIG_PATH": str(folder / "superset_config.py"),
        "SUPERSET_HOME": str(folder),
        "FLASK_APP": "superset",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def prepare(folder):
    """Settings and the database of Superset; complete when `prepared` is there."""
    if not (folder / "prepared").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "superset.db").unlink(missing_ok=True)
        (folder / "superset_config.py").write_text(SETTINGS.format(key=secrets.token_urlsafe(42)))
        admin = ["--username", USER, "--firstname", "A", "--lastname", "A", "--email", "a@localhost", "--password", PASSWORD]
        for arguments in (["db", "upgrade"], ["fab", "create-admin", *admin], ["init"]):
            done = subprocess.run(
                [program("superset"), *arguments],
                env=environment(folder),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=dies_with_us,
            )
            if done.returncode:
                raise Failed(f"superset {' '.join(arguments[:2])}: {done.returncode}\n{done.stdout.decode(errors='replace')}")
        (folder / "prepared").touch()


class Superset:
    """A running Superset, by its REST API."""

    def __init__(self, folder):
        self.said = folder / "server.log"
        self.http = requests.Session()
        self.http.trust_env = False
        # Errors as JSON, not as pages.
        self.http.headers["Accept"] = "application/json"
        # The port is taken before the server is there, and no other program can get it.
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listener, self.said.open("wb") as log:
            self.root = f"http://127.0.0.1:{listener.getsockname()[1]}"
            serve = ["--bind", f"fd://{listener.fileno()}", "--workers", "1", "--threads", "4", "--timeout", "600"]
            quiet = ["--graceful-timeout", "1", "--log-level", "warning", "--no-control-socket"]
            self.process = subprocess.Popen(
                [program("gunicorn"), *serve, *quiet, "superset.app:create_app()"],
                env=environment(folder),
                cwd=folder,
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_us,
            )

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def starts(self):
        """Connections wait in the listener until Superset takes them; one that died refuses them."""
        self.get("/health", answer=False)
        login = {"username": USER, "password": PASSWORD, "provider": "db", "refresh": False}
        self.http.headers["Authorization"] = "Bearer " + self.post("/api/v1/security/login", login)["access_token"]

    def ask(self, method, path, answer=True, wanted=range(200, 300), **what):
        try:
            response = self.http.request(method, self.root + path, timeout=300, **what)
        except requests.RequestException as error:
            raise Failed(f"{method} {path}: {error}") from error
        if response.status_code not in wanted:
            raise Failed(f"{method} {path} {json.dumps(what, default=str)}\n{response.status_code}: {response.text}")
        # Numbers keep their digits.
        return json.loads(response.text, parse_float=str) if answer else response.text

    def get(self, path, **what):
        return self.ask("GET", path, **what)

    def post(self, path, body, **what):
        return self.ask("POST", path, json=body, **what)


def as_text(value):
    """Every value as text; null stays."""
    if isinstance(value, dict):
        return {key: as_text(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_text(inner) for inner in value]
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def explore(superset, options):
    found = {}
    url = {"sqlalchemy_uri": options.url, "database_name": f"tested {secrets.token_hex(4)}"}
    superset.post("/api/v1/database/test_connection/", {**url, "impersonate_user": False})
    database = superset.post("/api/v1/database/", {**url, "expose_in_sqllab": True})["id"]

    # What the editor of SQL shows beside the query.
    at, table = f"/api/v1/database/{database}", {"name": options.table, "schema": options.schema}
    found["schemas"] = sorted(superset.get(f"{at}/schemas/?q=(force:!t)")["result"])
    tables = superset.get(f"{at}/tables/?q=(force:!t,schema_name:{options.schema})")["result"]
    found["tables"] = {kind: sorted(t["value"] for t in tables if t["type"] == kind) for kind in ("table", "view")}
    metadata = superset.get(f"{at}/table_metadata/", params=table)
    found["table_columns"] = {column["name"]: column["longType"] for column in metadata["columns"]}
    found["table_keys"] = {name: metadata[name] for name in ("primaryKey", "foreignKeys", "indexes")}
    found["select_star"] = superset.get(f"{at}/select_star/{options.table}/{options.schema}/")["result"]
    found["comment"] = metadata["comment"]
    superset.get(f"{at}/table_metadata/extra/", params=table)

    def sql(query, **what):
        body = {"database_id": database, "sql": query, "schema": options.schema, "runAsync": False, "queryLimit": 1000}
        return superset.post("/api/v1/sqllab/execute/", body, **what)

    order = f"select * from {options.table} order by {options.key} limit 5"
    for name, query in [("sql", order), ("sql_count", f"select count(*) as n from {options.table}"), *options.queries]:
        answer = sql(query)
        if answer["status"] != "success":
            raise Failed(f"{query}: {answer}")
        columns = {column["column_name"]: column["type"] for column in answer["columns"]}
        found[name] = {"columns": columns, "rows": answer["data"], "run": answer["query"]["executedSql"]}
    refused = sql(f"select no_such_column from {options.table}", wanted=range(400, 600))
    found["sql_error"] = [error["message"] for error in refused["errors"]]

    # A dataset of the table, another of a query.
    def dataset(name, **what):
        made = superset.post("/api/v1/dataset/", {"database": database, "schema": options.schema, "table_name": name, **what})
        return made["id"], superset.get(f"/api/v1/dataset/{made['id']}")["result"]

    source, shown = dataset(options.table)
    about = ("type", "is_dttm", "type_generic")
    found["columns"] = {c["column_name"]: {name: c[name] for name in about} for c in shown["columns"]}
    found["main_time"] = shown["main_dttm_col"]
    found["metrics"] = {metric["metric_name"]: metric["expression"] for metric in shown["metrics"]}
    query = f"select {options.by}, {options.time}, {options.sum} from {options.table}"
    virtual, shown_virtual = dataset("of_a_query", sql=query)
    found["columns_of_query"] = {c["column_name"]: c["type"] for c in shown_virtual["columns"]}
    values = superset.get(f"/api/v1/datasource/table/{source}/column/{options.by}/values/")["result"]
    found["values"] = sorted(value for value in values if value is not None)

    # Charts.
    types = {column["column_name"]: column["id"] for column in shown["columns"]}

    def metric(aggregate, column):
        of = {"column_name": column, "id": types[column]}
        return {"expressionType": "SIMPLE", "aggregate": aggregate, "column": of, "label": f"{aggregate}({column})"}

    def context(query, of=source):
        base = {"filters": [], "extras": {}, "row_limit": 1000, "orderby": []}
        datasource = {"id": of, "type": "table"}
        whole = {"result_format": "json", "result_type": "full", "force": True, "form_data": {"viz_type": "table"}}
        return {"datasource": datasource, "queries": [base | query], **whole}

    def answers(name, answer):
        result = answer["result"][0]
        if result.get("error") or result.get("status") not in (None, "success"):
            raise Failed(f"{name}: {json.dumps(result)}")
        columns = dict(zip(result.get("colnames", []), result.get("coltypes", [])))
        found[name] = {"columns": columns, "rows": result["data"], "run": result.get("query")}

    def chart(name, query, of=source):
        answers(name, superset.post("/api/v1/chart/data", context(query, of)))

    def axis(grain):
        label = {"label": options.time, "sqlExpression": options.time, "expressionType": "SQL"}
        return {"columnType": "BASE_AXIS", "timeGrain": grain, **label}

    total, by = metric("SUM", options.sum), options.by
    within = {"col": options.time, "op": "TEMPORAL_RANGE", "val": options.range}
    grouped = {"columns": [by], "metrics": [total], "orderby": [[total, False]]}
    chart("chart_groups", grouped)
    chart("chart_groups_of_query", grouped, virtual)
    aggregates = ["SUM", "AVG", "MIN", "MAX", "COUNT", "COUNT_DISTINCT"]
    chart("chart_aggregates", {"columns": [], "metrics": ["count", *(metric(a, options.sum) for a in aggregates)]})
    daily = {"columns": [axis("P1D"), by], "metrics": [total], "filters": [within], "extras": {"time_grain_sqla": "P1D"}}
    chart("chart_days", {**daily, "orderby": [[total, False]]})
    # Only the best groups: a join with a query of them.
    chart("chart_best", {**daily, "series_columns": [by], "series_limit": 2, "series_limit_metric": total, "order_desc": True})
    # Compared with an earlier time.
    chart("chart_offset", {**daily, "granularity": options.time, "time_range": options.range, "time_offsets": ["1 day ago"]})
    filters = [
        within,
        {"col": by, "op": "IN", "val": found["values"][:2]},
        {"col": by, "op": "ILIKE", "val": "%"},
        {"col": options.sum, "op": "IS NOT NULL"},
        {"col": options.sum, "op": ">=", "val": 0},
    ]
    chart("chart_filters", {**grouped, "filters": filters, "extras": {"having": f"SUM({options.sum}) >= 0"}})
    chart("chart_rows", {"columns": list(found["columns"]), "metrics": None, "orderby": [[options.key, True]], "row_limit": 5})
    samples = context({}) | {"result_type": "samples"}
    answers("samples", superset.post("/api/v1/chart/data", samples))
    chart("chart_row_count", {"columns": [by], "metrics": [total], "is_rowcount": True})
    grains = dict(shown["time_grain_sqla"])
    grains.pop(None, None)
    for grain in grains:
        extras = {"time_grain_sqla": grain}
        chart(f"chart_grain {grain}", {"columns": [axis(grain)], "metrics": ["count"], "filters": [within], "extras": extras})

    # One that is saved, and opened again.
    fields = {"viz_type": "table", "datasource": f"{source}__table", "groupby": [by], "metrics": [total]}
    saved = {
        "slice_name": "saved",
        "viz_type": "table",
        "datasource_id": source,
        "datasource_type": "table",
        "params": json.dumps(fields),
        "query_context": json.dumps(context(grouped)),
    }
    made = superset.post("/api/v1/chart/", saved)["id"]
    answers("saved", superset.get(f"/api/v1/chart/{made}/data/"))
    return found


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("url", nargs="?", default=os.environ.get("SUPERSET_TEST_URL"))
    parser.add_argument("--schema", default="public")
    parser.add_argument("--table", default="sessions")
    parser.add_argument("--key", default="id", help="a column that orders the rows")
    parser.add_argument("--by", default="account", help="a column of text")
    parser.add_argument("--sum", default="cost", help="a column of numbers")
    parser.add_argument("--time", default="started_at", help="a column of times")
    parser.add_argument("--range", default="2026-03-01T00:00:00 : 2026-04-01T00:00:00", help="FROM : TO, as Superset says it")
    parser.add_argument("--query", dest="queries", nargs=2, action="append", default=[], metavar=("NAME", "SQL"))
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    return options


def main():
    options = arguments()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    times = {}
    begun = time.monotonic()

    def took(what):
        times[what] = f"{time.monotonic() - begun:.1f}"

    try:
        prepare(options.folder)
        took("prepared")
        if not options.url:
            return
        superset = Superset(options.folder)
        try:
            superset.starts()
            took("started")
            found = explore(superset, options)
            took("explored")
        except Failed as error:
            raise Failed(f"{error}\nSuperset's log:\n{superset.said.read_text(errors='replace')[-20000:]}") from error
        finally:
            superset.end()
    except Failed as error:
        sys.exit(f"superset.py: {error}")
    print(json.dumps(as_text({**found, "seconds": times}), ensure_ascii=False))


main()
