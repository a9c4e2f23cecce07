"""Removes topics: delete_topics.py BROKERS NAME..."""

import sys

from confluent_kafka.admin import AdminClient

brokers, *names = sys.argv[1:]
admin = AdminClient({"bootstrap.servers": brokers})
for deleted in admin.delete_topics(names, operation_timeout=30).values():
    deleted.result(timeout=60)
