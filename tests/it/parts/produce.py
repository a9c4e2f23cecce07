"""Writes CloudEvents to Kafka as any producer would.

produce.py BROKERS TOPIC [PARTITIONER] < events.ndjson

Reads CloudEvents in structured mode, one a line, and sends each in binary mode: attributes as `ce_*` headers, the data as
the value, byte for byte as it is in the line. The key is `<account>/<user>`, or `<account>` without a user, from `source` and
`subject`. Fails if one was not acknowledged; prints how many were.
"""

import base64
import json
import sys

from confluent_kafka import Producer

SPACE = " \t\r\n"
decode = json.JSONDecoder().raw_decode


def members(line):
    """Name, value and text of each member of a JSON object."""

    def skip(at):
        while line[at] in SPACE:
            at += 1
        return at

    at = skip(0)
    assert line[at] == "{", line
    at = skip(at + 1)
    while line[at] != "}":
        name, at = decode(line, at)
        at = skip(at)
        assert line[at] == ":", line
        start = skip(at + 1)
        value, end = decode(line, start)
        yield name, value, line[start:end]
        at = skip(end)
        assert line[at] in ",}", line
        if line[at] == ",":
            at = skip(at + 1)


def record(line):
    """Key, value and headers of the event of a line."""
    attributes, data = {}, None
    for name, value, text in members(line):
        if name == "data":
            data = text.encode()
        elif name == "data_base64":
            data = base64.b64decode(value)
        elif value is not None:
            attributes[name] = value if isinstance(value, str) else text
    content_type = attributes.pop("datacontenttype", "application/json")
    account = attributes["source"].removeprefix("/accounts/")
    key = f"{account}/{attributes['subject']}" if "subject" in attributes else account
    headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
    return key.encode(), data, [*headers, ("content-type", content_type.encode())]


def main(brokers, topic, partitioner="murmur2_random"):
    producer = Producer(
        {
            "bootstrap.servers": brokers,
            "partitioner": partitioner,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 5,
        }
    )
    acknowledged, failures = 0, []

    def delivered(error, _message):
        nonlocal acknowledged
        if error is None:
            acknowledged += 1
        else:
            failures.append(str(error))

    for line in sys.stdin.buffer:
        if not line.strip():
            continue
        key, value, headers = record(line.decode())
        while True:
            try:
                producer.produce(topic, value, key, headers=headers, on_delivery=delivered)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()
    if failures:
        sys.exit(f"{len(failures)} not acknowledged: {failures[0]}")
    print(acknowledged)


main(*sys.argv[1:])
