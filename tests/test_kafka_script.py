"""`infra/kafka.sh`: a broker that starts, is found running, stops, comes back with its data, and survives SIGKILL."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.kafka_broker import SCRIPT, KafkaBroker
from tests.proxy import Proxy

SECONDS = 30.0


def admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


def status(broker: KafkaBroker) -> str:
    done = subprocess.run([SCRIPT, "status", broker.directory], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (done.stdout == "ready\n")
    return done.stdout.strip()


def test_a_broker_keeps_its_topics_over_stop_and_kill(new_kafka: Callable[[], KafkaBroker]) -> None:
    """Stopped or killed, a broker is down; started again it is ready and still has its topics."""
    broker = new_kafka()
    broker.start()
    first = (broker.directory / "pid").read_text()
    broker.start()
    assert (broker.directory / "pid").read_text() == first
    client = admin(broker.bootstrap)  # destroyed, it would drop its request
    client.create_topics([NewTopic("kept", 3)])["kept"].result(SECONDS)
    for end in (broker.stop, broker.kill):
        assert status(broker) == "ready"
        end()
        assert status(broker) == "down"
        broker.start()
        assert len(admin(broker.bootstrap).list_topics("kept", timeout=SECONDS).topics["kept"].partitions) == 3


def test_a_client_of_the_proxy_stays_behind_it(kafka: str, kafka_proxy: Proxy) -> None:
    """The broker names the proxy's port to a client that came through it, so a stalled proxy stops the client whole."""
    client = admin(f"{kafka_proxy.host}:{kafka_proxy.port}")
    assert {f"{broker.host}:{broker.port}" for broker in client.list_topics(timeout=SECONDS).brokers.values()} == {
        f"{kafka_proxy.host}:{kafka_proxy.port}"
    }
    assert kafka != f"{kafka_proxy.host}:{kafka_proxy.port}"


def test_a_wrong_command_prints_how_to_use_it() -> None:
    """Without a known command the script says what it can do and exits with 64."""
    done = subprocess.run([SCRIPT, "dance"], capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert "infra/kafka.sh start DIR PORT" in done.stderr
