"""What the numbers were measured on: they mean little without it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import apsw


def describe(postgres: str = "", kafka: str = "") -> dict[str, str]:
    """The machine and the versions of everything that takes part."""
    facts = {
        "cores": str(len(os.sched_getaffinity(0))),
        "CPU": _field("/proc/cpuinfo", "model name"),
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / (1 << 20):.1f} GiB",
        "kernel": platform.release(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "SQLite": apsw.sqlite_lib_version(),
        "Postgres": postgres,
        "Kafka": kafka,
    }
    facts |= {name: version(name) for name in ("psycopg", "msgspec", "apsw", "confluent-kafka", "headrace")}
    return {name: value for name, value in facts.items() if value}


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"
