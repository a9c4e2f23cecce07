"""Asks a server what tools ask: ask.py FILE.sql... prints as JSON how many statements each file has, how many rows they gave
in all, and which of them fail.

The server is the one of libpq's environment variables. A file has a statement, then a line that is only `;`, and so on."""

import json
import pathlib
import sys

import psycopg


def statements(path):
    lines = []
    for line in [*path.read_text(encoding="utf-8").split("\n"), ";"]:
        if line != ";":
            # Comments and blank lines before the statement are this folder's.
            if lines or (line.strip() and not line.startswith("--")):
                lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []


def failures(asked, rows):
    """The statements that fail, each in the session that those before it left, as a tool asks them."""
    connection = None
    for statement in asked:
        try:
            if connection is None or connection.closed:
                connection = psycopg.connect(autocommit=True)
            with connection.cursor() as cursor:
                cursor.execute(statement)
                if cursor.description is not None:
                    rows.extend(cursor.fetchall())
        except Exception as error:
            yield {"statement": statement.split("\n", 1)[0], "error": f"{type(error).__name__}: {error}"}
    if connection is not None:
        connection.close()


found = {}
for path in map(pathlib.Path, sys.argv[1:]):
    asked = list(statements(path))
    rows = []
    failed = list(failures(asked, rows))
    found[path.name] = {"statements": len(asked), "failed": failed, "rows": len(rows)}
    found[path.name]["says"] = {word: any(word in map(str, row) for row in rows) for word in ("sessions", "session_id")}
print(json.dumps(found, ensure_ascii=False))
