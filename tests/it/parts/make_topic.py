"""Makes a topic: make_topic.py BROKERS NAME PARTITIONS [SETTING=VALUE...]"""

import sys

from confluent_kafka.admin import AdminClient, NewTopic

brokers, name, partitions, *settings = sys.argv[1:]
config = dict(setting.split("=", 1) for setting in settings)
admin = AdminClient({"bootstrap.servers": brokers})
topic = NewTopic(name, int(partitions), -1, config=config)
admin.create_topics([topic], operation_timeout=30)[name].result(timeout=60)
