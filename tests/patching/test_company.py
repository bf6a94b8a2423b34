"""C14: agents that have put a subclass in the place of confluent_kafka's producer."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from support.backends import ProducerBackend
from support.new_interpreter import in_new_interpreter

calls: list[str] = []
"""Methods of the agent's that were called."""


def subclass(name: str, producer: Any) -> Any:
    """What an agent puts in the place of a producer."""

    class Agents(producer):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            calls.append("__init__")

        def produce(self, *args: Any, **kwargs: Any) -> None:
            calls.append("produce")
            super().produce(*args, **kwargs)

        def flush(self, *args: Any) -> Any:
            calls.append("flush")
            return super().flush(*args)

    return type(name, (type("Mixin", (), {}), Agents), {})  # ddtrace's has a mixin in front


def in_the_package(name: str) -> None:
    """As ddtrace and OpenTelemetry do it."""
    package: Any = importlib.import_module("confluent_kafka")
    package.Producer = subclass(name, package.Producer)


def in_the_extension() -> None:
    """As New Relic does it, before the package takes the class from there."""
    package: Any = importlib.import_module("confluent_kafka")
    package.Producer = package.cimpl.Producer = subclass("Producer", package.cimpl.Producer)


def ours() -> Any:
    return importlib.import_module("arroyo_metrics_buffer")


def arroyos() -> Any:
    return importlib.import_module("arroyo.backends.kafka.consumer")


def of_producer() -> Any:
    return ours().status().targets[1]


def delivered(cls: Any) -> dict[str, int]:
    """Produce a message and flush; tell what was counted."""
    backend: Any = ProducerBackend()
    importlib.import_module("arroyo.utils.metrics").configure_metrics(backend)
    producer = cls({"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 0})
    producer.produce("topic", b"value")
    assert producer.flush(30) == 0
    counts: dict[str, int] = backend.counts()
    return counts


def in_both() -> None:
    in_the_extension()
    in_the_package("AutoInstrumentedProducer")


AGENTS: dict[str, Callable[[], object]] = {
    "package": lambda: in_the_package("TracedProducer"),
    "extension": in_the_extension,
    "both": in_both,
}
AGENT = pytest.mark.parametrize("agent", AGENTS)


def take(order: str, agent: str) -> None:
    """Import and patch, in an order."""
    steps = {"ours": ours, "agent": AGENTS[agent], "arroyo": arroyos}
    for step in order.split(", "):
        steps[step]()


@pytest.mark.parametrize(
    "order", ["ours, agent, arroyo", "agent, ours, arroyo", "agent, arroyo, ours"]
)
@AGENT
@in_new_interpreter
def test_a_producer_below_an_agents_class_is_patched_and_the_agent_gets_its_calls(
    agent: str, order: str
) -> None:
    take(order, agent)
    assert (of_producer().state, of_producer().protected) == ("patched", True)
    assert delivered(arroyos().ConfluentProducer) == {"success": 1}
    agents = 2 if agent == "both" else 1
    assert sorted(calls) == sorted(["__init__", "produce", "flush"] * agents)


@pytest.mark.parametrize(
    "order", ["ours, arroyo, agent", "arroyo, ours, agent", "arroyo, agent, ours"]
)
@in_new_interpreter
def test_an_agent_that_comes_after_arroyo_changes_nothing(order: str) -> None:
    take(order, "both")
    assert (of_producer().state, of_producer().protected) == ("patched", True)
    assert delivered(arroyos().ConfluentProducer) == {"success": 1}


@AGENT
@pytest.mark.parametrize("agent_is_first", [True, False])
@in_new_interpreter
def test_a_producer_that_is_not_patched_is_found_wherever_the_agent_is(
    agent: str, *, agent_is_first: bool
) -> None:
    if agent_is_first:
        AGENTS[agent]()
    early = arroyos().ConfluentProducer({"log_level": 0})
    del sys.modules["arroyo.backends.kafka.consumer"]
    arroyos()  # whose class is another
    if not agent_is_first:
        AGENTS[agent]()
    ours()
    assert (of_producer().state, of_producer().unpatched) == ("patched", 1)
    assert not of_producer().protected
    del early
    assert of_producer().protected


@AGENT
@pytest.mark.parametrize("agent_is_first", [True, False])
@in_new_interpreter
def test_an_older_arroyo_that_has_no_class_of_its_own_needs_no_patch(
    agent: str, *, agent_is_first: bool
) -> None:
    confluent_kafka = importlib.import_module("confluent_kafka")
    if agent_is_first:
        AGENTS[agent]()
    arroyos().ConfluentProducer = confluent_kafka.Producer
    if not agent_is_first:
        AGENTS[agent]()
    ours()
    assert (of_producer().state, of_producer().protected) == ("missing", True)
    assert of_producer().reason.startswith("this arroyo uses confluent_kafka's own")


@in_new_interpreter
def test_a_base_that_only_has_the_name_is_not_confluent_kafkas() -> None:
    base = type("Producer", (), {})
    cls = arroyos().ConfluentProducer
    arroyos().ConfluentProducer = type("ConfluentProducer", (base,), dict(vars(cls)))
    ours()
    assert of_producer().state == "unknown"
    assert "its base is Producer, not confluent_kafka.Producer" in of_producer().reason
