"""Reads the tables with Spark: spark_totals.py LAKE

LAKE is where `events`, `sessions` and `messages` lie, `s3a://bucket/prefix` in the store that the environment tells of, or a
folder. Prints their rows and the sums of `sessions`, as JSON.
"""

import glob
import json
import os
import sys

from pyspark.sql import SparkSession, functions

lake = sys.argv[1]
store = {
    "endpoint": os.environ.get("AWS_ENDPOINT_URL", ""),
    "endpoint.region": os.environ.get("AWS_REGION", "us-east-1"),
    "access.key": os.environ.get("AWS_ACCESS_KEY_ID", ""),
    "secret.key": os.environ.get("AWS_SECRET_ACCESS_KEY", ""),
    "path.style.access": "true",
    "connection.ssl.enabled": str(os.environ.get("AWS_ENDPOINT_URL", "").startswith("https")).lower(),
}
settings = {
    "spark.driver.memory": "512m",
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.jars": ",".join(sorted(glob.glob(os.environ["SPARK_TEST_JARS"] + "/*.jar"))),
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.shuffle.partitions": "1",
    "spark.databricks.delta.snapshotPartitions": "1",
    **{f"spark.hadoop.fs.s3a.{name}": value for name, value in store.items()},
}
builder = SparkSession.builder.master("local[2]")
for name, value in settings.items():
    builder = builder.config(name, value)
spark = builder.getOrCreate()

tables = {name: spark.read.format("delta").load(f"{lake}/{name}") for name in ("events", "sessions", "messages")}
totals = {name: table.count() for name, table in tables.items()}
sums = [functions.coalesce(functions.sum(name), functions.lit(0)).alias(name) for name in ("charged", "inbound", "outbound")]
print(json.dumps({**totals, **tables["sessions"].agg(*sums).first().asDict()}))
spark.stop()
