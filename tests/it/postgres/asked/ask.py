"""Asks a server what tools ask: ask.py FILE.sql... prints as JSON how many statements each file has and which of them fail.

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


def failures(path, asked):
    """The statements that fail, each in the session that those before it left, as a tool asks them."""
    connection = None
    for statement in asked:
        try:
            if connection is None or connection.closed:
                connection = psycopg.connect(autocommit=True)
            with connection.cursor() as cursor:
                cursor.execute(statement)
                if cursor.description is not None:
                    cursor.fetchall()
        except Exception as error:
            yield {"statement": statement.split("\n", 1)[0], "error": f"{type(error).__name__}: {error}"}
    if connection is not None:
        connection.close()


found = {}
for path in map(pathlib.Path, sys.argv[1:]):
    asked = list(statements(path))
    found[path.name] = {"statements": len(asked), "failed": list(failures(path, asked))}
print(json.dumps(found, ensure_ascii=False))
