"""Clients of PostgreSQL in Python against a server that holds the golden history `small`: postgres.py TEST FOLDER."""

import datetime
import decimal
import gzip
import json
import os
import pathlib
import pty
import select
import sys

import psycopg
import psycopg.rows

TEST, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])
UTC = datetime.timezone.utc
KEYS = {"sessions": ["session_id"], "messages": ["account", "user_id", "message_token"]}


def golden(table):
    with gzip.open(FOLDER / f"{table}.counterbat.ndjson.gz") as lines:
        return [json.loads(line) for line in lines]


def wanted(column, value):
    """A value of the golden rows as a driver gives it."""
    if value is None:
        return None
    if column.endswith("_token"):
        return decimal.Decimal(value)
    if column.endswith("_at"):
        return datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    return value


def same(found, rows, table, how):
    key = lambda row: tuple(row[name] for name in KEYS[table])
    found = {key(row): row for row in found}
    assert len(found) == len(rows), (how, table, len(found), len(rows))
    for row in rows:
        row = {column: wanted(column, value) for column, value in row.items()}
        mine = found[key(row)]
        for column, value in row.items():
            assert mine[column] == value, (how, table, column, mine[column], value)
            assert type(mine[column]) is type(value), (how, table, column, type(mine[column]), type(value))


def connect(**options):
    return psycopg.connect(row_factory=psycopg.rows.dict_row, **options)


def golden_rows():
    with connect() as connection:
        connection.execute("set time zone 'UTC'")
        for table in KEYS:
            for binary in (False, True):
                rows = connection.execute(f"select * from {table}", binary=binary).fetchall()
                same(rows, golden(table), table, f"binary={binary}")
            with connection.cursor(name="all of it", binary=True) as cursor:
                cursor.itersize = 7
                cursor.execute(f"select * from {table}")
                same(list(cursor), golden(table), table, "server-side cursor")


def queries():
    sessions, messages = golden("sessions"), golden("messages")
    with connect() as connection:
        for binary in (False, True):
            one = lambda sql, *values: list(connection.execute(sql, values, binary=binary).fetchone().values())
            bot = sessions[0]["account"]
            assert one("select count(*) from sessions where account = %s", bot) == [sum(s["account"] == bot for s in sessions)]
            token = messages[0]["message_token"]
            assert one("select user_id from messages where message_token = %s", token) == [messages[0]["user_id"]]
            shown = one("select message_token from messages where message_token = %s", decimal.Decimal(token))
            assert shown == [decimal.Decimal(token)], shown
            # The largest of them, which no bigint holds.
            largest = 2**64 - 1
            assert one("select -1::bigint as message_token") == [decimal.Decimal(largest)]
            assert one("select count(*) from messages where message_token = %s", largest) == [0]
            opened = datetime.datetime.fromisoformat(sessions[0]["opened_at"].replace("Z", "+00:00"))
            later = sum(datetime.datetime.fromisoformat(s["opened_at"].replace("Z", "+00:00")) >= opened for s in sessions)
            assert one("select count(*) from sessions where opened_at >= %s", opened) == [later]
            assert one("select count(*) from sessions where country is null and inbound > %s", 0) == [
                sum(s["country"] is None and s["inbound"] > 0 for s in sessions)
            ]
            assert one("select sum(inbound) as n from sessions where kind = %s", "service") == [
                sum(s["inbound"] for s in sessions if s["kind"] == "service")
            ]
            cost = one("select cast(%s as decimal(18, 6)) as cost", decimal.Decimal("-0.014"))
            assert cost == [decimal.Decimal("-0.014000")], cost
            assert one("select cast(%s as boolean), cast(%s as bigint), cast(%s as text)", True, None, "ü'") == [True, None, "ü'"]
            moment = datetime.datetime(2026, 3, 1, 10, 0, 0, 250, tzinfo=UTC)
            assert one("select cast(%s as timestamptz)", moment) == [moment]
            assert one("select date '2026-03-01' as d") == [datetime.date(2026, 3, 1)]
            got = connection.execute("select session_id from sessions order by 1 limit %s", [5], binary=binary).fetchall()
            assert [row["session_id"] for row in got] == sorted(s["session_id"] for s in sessions)[:5]
            # A value is not changed to fit a column.
            assert one("select count(*) from sessions where inbound > %s", decimal.Decimal("0.5")) == [
                sum(s["inbound"] > 0 for s in sessions)
            ]
            assert one("select count(*) from sessions where inbound < %s", 5_000_000_000) == [len(sessions)]
            assert one("select count(*) from sessions where country = any(%s)", ["PL", "XX"]) == [
                sum(s["country"] in ("PL", "XX") for s in sessions)
            ]
            assert one("select %s as a, %s as b", 7, "x") == [7, "x"]
        # Prepared once, it sees what is there each time.
        for _ in range(8):
            assert connection.execute("select count(*) as n from sessions where inbound >= %s", [0], prepare=True).fetchone()["n"] == len(sessions)
        try:
            connection.execute("select count(*) from sessions where opened_at > %s", ["soon"])
            raise AssertionError("a text that is no time was taken")
        except psycopg.errors.InvalidTextRepresentation:
            connection.rollback()
        for sql, error in [
            ("select * from nothing", psycopg.errors.UndefinedTable),
            ("delete from sessions", psycopg.errors.ReadOnlySqlTransaction),
        ]:
            try:
                connection.execute(sql)
                raise AssertionError(sql)
            except error:
                connection.rollback()
        with connection.cursor(name="c") as cursor:
            cursor.execute("select session_id from sessions where account = %s order by 1", [sessions[0]["account"]])
            first = cursor.fetchmany(3)
            rest = cursor.fetchall()
            ids = sorted(s["session_id"] for s in sessions if s["account"] == sessions[0]["account"])
            assert [row["session_id"] for row in first + rest] == ids
        with connection.cursor().copy("copy (select session_id, inbound from sessions order by 1) to stdout (format binary)") as copy:
            copy.set_types(["text", "int4"])
            assert list(copy.rows()) == sorted((s["session_id"], s["inbound"]) for s in sessions)
        with connection.pipeline():
            cursors = [connection.execute("select %s::bigint as n", [n]) for n in range(20)]
            assert [cursor.fetchone()["n"] for cursor in cursors] == list(range(20))


def sqlalchemy_reflection(driver="psycopg"):
    import sqlalchemy as sa

    engine = sa.create_engine(f"postgresql+{driver}://")
    inspector = sa.inspect(engine)
    assert {"events", "sessions", "messages"} <= set(inspector.get_table_names()), inspector.get_table_names()
    assert "usage_daily" in inspector.get_view_names(), inspector.get_view_names()
    columns = {column["name"]: column for column in inspector.get_columns("sessions")}
    assert isinstance(columns["cost"]["type"], sa.Numeric) and isinstance(columns["opened_at"]["type"], sa.TIMESTAMP)
    assert columns["opened_at"]["type"].timezone and not columns["session_id"]["nullable"]
    table = sa.Table("sessions", sa.MetaData(), autoload_with=engine)
    with engine.connect() as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(table).where(table.c.inbound >= 0)).scalar()
        assert count == len(golden("sessions")), count
        rows = connection.execute(sa.select(table).order_by(table.c.session_id)).mappings().all()
        same([dict(row) for row in rows], golden("sessions"), "sessions", "SQLAlchemy")


def psql_completion():
    """Types into psql as a person does, and lets it complete."""
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe("psql", ["psql", "-X"], os.environ | {"TERM": "dumb", "PAGER": "cat"})

    def shows(wanted):
        shown = b""
        while wanted not in shown:
            readable, _, _ = select.select([terminal], [], [], 60)
            assert readable, (wanted, shown)
            # It rings the bell where a name can go on in several ways.
            shown += os.read(terminal, 4096).replace(b"\x07", b"")

    shows(b"=> ")
    for typed, wanted in [
        (b"select * from sess\t", b"sessions"),
        (b"\\d usage_da\t", b"usage_daily"),
        (b"select * from public.mess\t", b"messages"),
        (b"select opened_at from sessions where opened_by_t\t", b"opened_by_token"),
        (b"show server_versi\t", b"server_version"),
        (b"set timez\t", b"timezone"),
    ]:
        os.write(terminal, typed)
        shows(wanted)
        # Forgets the line.
        os.write(terminal, b"\x15")
    os.write(terminal, b"\\q\n")
    assert os.waitpid(process, 0)[1] == 0


def adbc_tables():
    """ADBC copies answers in binary."""
    import adbc_driver_postgresql.dbapi as adbc

    with adbc.connect("postgresql://") as connection, connection.cursor() as cursor:
        for table in KEYS:
            cursor.execute(f"select * from {table}")
            answer = cursor.fetch_arrow_table()
            # It has no type for numeric and gives it as text.
            numeric = [field.name for field in answer.schema if b"numeric" in (field.metadata or {}).get(b"ADBC:postgresql:typname", b"")]
            assert numeric, answer.schema
            rows = answer.to_pylist()
            for row in rows:
                row.update({name: None if row[name] is None else decimal.Decimal(row[name]) for name in numeric})
            times = [name for name in rows[0] if name.endswith("_at")]
            for row in rows:
                row.update({name: row[name] and row[name].astimezone(UTC) for name in times})
            same(rows, golden(table), table, "ADBC")
        cursor.execute("select count(*) as n from sessions where inbound >= $1", (0,))
        assert cursor.fetchall() == [(len(golden("sessions")),)]
        schema = connection.adbc_get_table_schema("sessions")
        assert {"session_id", "opened_at", "cost"} <= set(schema.names), schema
        objects = connection.adbc_get_objects(depth="tables", catalog_filter="counterbat").read_all().to_pylist()
        schemas = {schema["db_schema_name"]: schema["db_schema_tables"] for schema in objects[0]["catalog_db_schemas"]}
        kinds = {table["table_name"]: table["table_type"] for table in schemas["public"]}
        assert kinds["sessions"] == "table" and kinds["usage_daily"] == "view", kinds


def pgcli_completion():
    """What pgcli asks to complete names."""
    from pgcli.pgexecute import PGExecute

    environment = [os.environ[name] for name in ("PGDATABASE", "PGUSER", "PGHOST", "PGPORT")]
    database, user, host, port = environment
    executor = PGExecute(database=database, user=user, password="", host=host, port=port, dsn="")
    assert ("public", "sessions") in set(executor.tables()), list(executor.tables())
    assert ("public", "usage_daily") in set(executor.views())
    columns = {column[2]: column[3] for column in executor.table_columns() if column[1] == "sessions"}
    assert columns["opened_at"] == "timestamp with time zone" and columns["cost"] == "numeric", columns
    assert {"session_id", "policy"} <= {column[2] for column in executor.view_columns() if column[1] == "users"} | set(columns)
    assert "public" in executor.schemata() and executor.search_path(), executor.search_path()
    assert "counterbat" in executor.databases()
    for ask in (executor.functions, executor.datatypes, executor.foreignkeys, executor.full_databases):
        list(ask())


TESTS = {
    "golden": golden_rows,
    "queries": queries,
    "sqlalchemy": sqlalchemy_reflection,
    "sqlalchemy_psycopg2": lambda: sqlalchemy_reflection("psycopg2"),
    "completion": psql_completion,
    "adbc": adbc_tables,
    "pgcli": pgcli_completion,
}
TESTS[TEST]()
