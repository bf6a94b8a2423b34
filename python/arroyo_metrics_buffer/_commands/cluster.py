"""The Kafka cluster that the commands run on, and the demo's topics there."""

# confluent_kafka's types are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress

from arroyo.types import Topic
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

SILENT = {"log_level": 0}  # librdkafka logs emergencies only
PARTITIONS = 4
KAFKA_TIMEOUT = 10.0  # seconds for a cluster to answer


@contextmanager
def kafka(bootstrap_servers: str | None) -> Generator[str]:
    """The cluster to run on, as bootstrap servers."""
    if bootstrap_servers is not None:
        yield bootstrap_servers
        return
    # Real brokers as far as the protocol goes; they live as long as this producer does.
    mock = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 3, **SILENT})
    brokers = mock.list_topics(timeout=KAFKA_TIMEOUT).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


@contextmanager
def topics(servers: str) -> Generator[tuple[Topic, Topic]]:
    """A topic to copy from and one to copy to, for this run."""
    run = uuid.uuid4().hex[:8]
    names = [f"arroyo-demo-{run}-{role}" for role in ("source", "destination")]
    admin = AdminClient({"bootstrap.servers": servers, **SILENT})
    cluster = admin.list_topics(timeout=KAFKA_TIMEOUT)
    if cluster.controller_id not in cluster.brokers:
        # The mock cluster: it has no controller, which is who makes and deletes topics. There a
        # topic comes into being, with 4 partitions, when it is first asked for.
        for name in names:
            admin.list_topics(name, timeout=KAFKA_TIMEOUT)
        yield Topic(names[0]), Topic(names[1])
        return
    new = [NewTopic(name, PARTITIONS) for name in names]
    for future in admin.create_topics(new, request_timeout=KAFKA_TIMEOUT).values():
        future.result()
    try:
        await_leaders(servers, names[0])
        yield Topic(names[0]), Topic(names[1])
    finally:
        for future in admin.delete_topics(names, request_timeout=KAFKA_TIMEOUT).values():
            with suppress(KafkaException):
                future.result()


def await_leaders(servers: str, topic: str) -> None:
    """Wait until every partition can tell its offsets, which takes brokers a moment.

    arroyo's consumer asks for them once, and dies if there is no answer.
    """
    consumer = Consumer({"bootstrap.servers": servers, "group.id": f"{topic}-probe", **SILENT})
    deadline = time.monotonic() + KAFKA_TIMEOUT
    waiting = [TopicPartition(topic, index) for index in range(PARTITIONS)]
    while waiting:
        try:
            consumer.get_watermark_offsets(waiting[-1], timeout=KAFKA_TIMEOUT)
            waiting.pop()
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    consumer.close()
