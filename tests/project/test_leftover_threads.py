"""No test leaves a thread behind: the check that says so, and the end of producers' threads."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from arroyo.backends.kafka import KafkaPayload, KafkaProducer
from arroyo.backends.kafka.consumer import ConfluentProducer
from arroyo.types import Topic

from support.leftover_threads import TASKS, no_threads_left
from support.producers import close

CONFIGURATION: dict[str, Any] = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}


def test_a_thread_of_python_that_is_left_is_found() -> None:
    stopped = threading.Event()
    thread = threading.Thread(target=stopped.wait, name="forgotten")
    with (
        pytest.raises(AssertionError, match="threads are left: forgotten"),
        no_threads_left(deadline=0),
    ):
        thread.start()
    stopped.set()
    thread.join()


@pytest.mark.skipif(not TASKS.is_dir(), reason="no /proc/self/task")
def test_a_thread_of_librdkafka_that_is_left_is_found() -> None:
    with pytest.raises(AssertionError, match="threads are left: "), no_threads_left(deadline=0):
        producer = ConfluentProducer(CONFIGURATION)
    close(producer)


def test_a_thread_that_is_about_to_end_is_waited_for() -> None:
    with no_threads_left():
        threading.Thread(target=time.sleep, args=(0.05,)).start()


def test_a_closed_producer_has_no_threads_whatever_is_waiting_and_whoever_refers_to_it() -> None:
    with no_threads_left():
        producer = ConfluentProducer(CONFIGURATION)
        producer.produce("topic", b"value")
        close(producer)
        assert producer


def test_a_closed_producer_of_messages_has_no_threads_either() -> None:
    with no_threads_left():
        producer = KafkaProducer(CONFIGURATION)
        future: Any = producer.produce(Topic("topic"), KafkaPayload(None, b"value", []))
        close(producer)
        assert future.exception(0)
