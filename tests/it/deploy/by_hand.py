"""Turns a compose file into processes of this machine: every service with the command, environment, files and health check
that it has there, but with paths below a folder of its own and ports of 127.0.0.1.

usage: by_hand.py SCHEMA ROOT PORT... < docker-compose.yml, in the folder of the compose file; variables by environment.
Prints {"services": {name: {"argv", "env", "cwd", "health", "after"}}, "addresses": {"name:port": "127.0.0.1:port"}}.
"""

import json
import os
import re
import sys

import jsonschema
import yaml

# What the images start where the compose file says nothing else. Programs are found by name.
PROGRAMS = {
    "counterbat": ["counterbat"],
    "nginx": ["nginx", "-e", "stderr", "-g", "daemon off;"],
    "prom/prometheus": ["prometheus"],
    "quay.io/minio/minio": ["minio"],
    "apache/kafka": ["kafka"],
    "grafana/grafana": ["grafana", "server"],
}
WORKING_DIR = {"counterbat": "/etc/counterbat"}


def variable(match):
    name, _, message = match[1].partition(":?")
    return os.environ.get(name) or sys.exit(f"required variable {name} is missing a value: {message}")


compose = yaml.safe_load(re.sub(r"\$\{([^}]+)\}", variable, sys.stdin.read()))
jsonschema.validate(compose, json.load(open(sys.argv[1])))
root, free = sys.argv[2], iter(sys.argv[3:])
services = compose["services"]
addresses = {}


def port(service, number):
    key = f"{service}:{number}"
    if key not in addresses:
        addresses[key] = f"127.0.0.1:{next(free)}"
    return addresses[key].split(":")[1]


def here(service, text):
    """A text of a service's, with the addresses and paths it has here."""
    hosts = "|".join(map(re.escape, services))

    def address(match):
        if match["tcp"]:
            return f"/dev/tcp/127.0.0.1/{port(service, match['tcp'])}"
        if match["listen"]:
            return f"listen 127.0.0.1:{port(service, match['listen'])}"
        host, number = match["host"] or "", match["port"]
        if host in services:
            return f"127.0.0.1:{port(host, number)}"
        return f"{host}:{port(service, number)}"

    local = r"0\.0\.0\.0|127\.0\.0\.1|localhost"
    text = re.sub(
        rf"/dev/tcp/127\.0\.0\.1/(?P<tcp>\d+)|listen (?P<listen>\d+)(?= )|(?P<host>{hosts}|{local})?:(?P<port>\d{{3,5}})\b",
        address,
        text,
    )
    paths = "|".join(re.escape(path) for path in sorted(folders(service), key=len, reverse=True))
    return re.sub(rf"(?<![\w./-])({paths})(?![\w.-])", lambda match: f"{root}/{service}{match[1]}", text)


def folders(service):
    said = services[service]
    volumes = [volume.split(":")[1] for volume in said.get("volumes", [])]
    return volumes + [config["target"] for config in said.get("configs", [])] + ["/run/secrets", "/tmp"]


def write(service, path, text):
    path = f"{root}/{service}{path}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    return path


def kafka(service, env):
    """As the start script of the image does it: settings by environment, and a folder that is made ready once."""
    names = [name for name in env if name.startswith("KAFKA_")]
    lines = [f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={env[name]}" for name in names]
    settings = write(service, "/opt/kafka/config/server.properties", "\n".join(lines))
    java = "kafka -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
    ready = f"{java} kafka.tools.StorageTool format --ignore-formatted -t {env['CLUSTER_ID']} -c {settings}"
    return ["sh", "-c", f"{ready} && exec {java} kafka.Kafka {settings}"]


def process(service):
    said = services[service]
    image = said["image"].rsplit(":", 1)[0]
    for folder in folders(service)[: len(said.get("volumes", []))] + ["/tmp"]:
        os.makedirs(f"{root}/{service}{folder}", exist_ok=True)
    for secret in said.get("secrets", []):
        source = compose["secrets"][secret]
        text = open(source["file"]).read() if "file" in source else os.environ[source["environment"]]
        write(service, f"/run/secrets/{secret}", text)
    for config in said.get("configs", []):
        text = open(compose["configs"][config["source"]]["file"]).read()
        write(service, config["target"], here(service, text))
    env = {name: here(service, value) for name, value in said.get("environment", {}).items()}
    argv = said.get("entrypoint", PROGRAMS[image]) + said.get("command", [])
    argv = [here(service, word) for word in argv]
    if image == "nginx":
        argv += ["-c", f"{root}/{service}/etc/nginx/nginx.conf"]
    if image == "apache/kafka":
        argv = kafka(service, env)
    health = [here(service, word) for word in said["healthcheck"]["test"]]
    assert health[0] == "CMD", health
    if health[1] == "/opt/kafka/bin/kafka-broker-api-versions.sh":
        health[1:2] = ["kafka", "org.apache.kafka.tools.BrokerApiVersionsCommand"]
    cwd = f"{root}/{service}{WORKING_DIR.get(image, '/tmp')}"
    return {"argv": argv, "env": env, "cwd": cwd, "health": health[1:], "after": list(said.get("depends_on", {}))}


processes = {service: process(service) for service in services}
print(json.dumps({"compose": compose, "services": processes, "addresses": addresses}))
