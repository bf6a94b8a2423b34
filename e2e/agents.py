"""This package beside agents, in every order: e2e/agents.py WHEEL [AGENT...].

Each agent is installed, with the wheel, into a virtual environment of its own. For each order it
starts a program that has both. There threads write to a processor's buffer and produce messages,
and then both classes of arroyo's have to be patched, every count exact, and the agent has to have
done its work. `doctor` and `reproduce` run under each agent's command too. Exit status: 0 if all of
it passed. Once all is installed, nothing leaves this machine: the agents have no server to report
to.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
THREADS = 4
TURNS = 1_000
MESSAGES = THREADS * TURNS
RUN = ["arroyo-metrics-buffer", "run", "--"]
NOWHERE = "http://127.0.0.1:9"  # the port that discards
LOCAL = ("127.0.0.1", "::1", "localhost", "")
TIMEOUT = 120  # seconds for a program


class Agent:
    """What one is, as far as its users see."""

    packages: tuple[str, ...]
    """What is installed; the first one's version is told."""
    launcher: tuple[str, ...] = ()
    """The command that starts a program with it, if it has one."""
    hides_run = False
    """Whether the launcher's sitecustomize keeps any other from running, and so that of `run`."""
    settings: dict[str, str] = {}  # noqa: RUF012 - nobody changes it

    def __init__(self) -> None:
        self.seen: list[Any] = []
        """What it has recorded."""

    def start(self) -> None:
        """Start it, as an application does that has no launcher."""
        raise NotImplementedError

    def watch(self) -> None:
        """Have what it records put into ``seen``."""

    def work(self) -> None:
        """Let it do what producing does not make it do."""

    def expected(self) -> int:
        """How many things it has to see."""
        return 1


class Ddtrace(Agent):
    """Datadog's."""

    packages = ("ddtrace",)
    launcher = ("ddtrace-run",)
    settings = {  # noqa: RUF012
        "DD_TRACE_AGENT_URL": NOWHERE,
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        "DD_CRASHTRACKING_ENABLED": "false",
    }

    def start(self) -> None:
        importlib.import_module("ddtrace.auto")

    def watch(self) -> None:
        trace = importlib.import_module("ddtrace.trace")

        class Keep(trace.TraceFilter):  # type: ignore[misc,name-defined]
            def process_trace(_, spans: list[Any]) -> None:  # noqa: N805 - None: send nothing
                self.seen += (span for span in spans if span.name == "kafka.produce")

        trace.tracer.configure(trace_processors=[Keep()])
        consumer = importlib.import_module("arroyo.backends.kafka.consumer")
        assert "TracedProducer" in [each.__name__ for each in consumer.ConfluentProducer.__mro__]

    def expected(self) -> int:
        return MESSAGES


class OpenTelemetry(Agent):
    """By its own SDK."""

    # All versions that know today's confluent-kafka are betas, which pip takes if it is told to.
    packages = (
        "opentelemetry-instrumentation-confluent-kafka>=0.66b1",
        "opentelemetry-distro>=0.66b1",
    )
    launcher = ("opentelemetry-instrument",)
    hides_run = True
    settings = {  # noqa: RUF012
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }

    def start(self) -> None:
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        importlib.import_module("opentelemetry.trace").set_tracer_provider(sdk.TracerProvider())
        kafka = importlib.import_module("opentelemetry.instrumentation.confluent_kafka")
        kafka.ConfluentKafkaInstrumentor().instrument()

    def watch(self) -> None:
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        memory = importlib.import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        self.exporter = memory.InMemorySpanExporter()
        provider = importlib.import_module("opentelemetry.trace").get_tracer_provider()
        provider.add_span_processor(export.SimpleSpanProcessor(self.exporter))

    def work(self) -> None:
        spans = self.exporter.get_finished_spans()
        self.seen += (span for span in spans if span.kind.name == "PRODUCER")

    def expected(self) -> int:
        return MESSAGES


class NewRelic(Agent):
    """In its mode for developers, it talks to nobody."""

    packages = ("newrelic",)
    launcher = ("newrelic-admin", "run-program")
    settings = {"NEW_RELIC_CONFIG_FILE": str(HERE / "newrelic.ini")}  # noqa: RUF012

    def start(self) -> None:
        importlib.import_module("newrelic.agent").initialize()

    def work(self) -> None:
        """Produce in a transaction: it notes which message broker that is."""
        agent: Any = importlib.import_module("newrelic.agent")
        consumer = importlib.import_module("arroyo.backends.kafka.consumer")
        producer = consumer.ConfluentProducer({"log_level": 0})
        application = agent.register_application(timeout=10)
        with agent.BackgroundTask(application, "agents.py") as transaction:
            producer.produce("topic", b"value")
            self.seen += vars(transaction)["_message_brokers"]
        producer.purge()


class Elastic(Agent):
    """It knows no confluent_kafka."""

    packages = ("elastic-apm",)
    launcher = ("elasticapm-run",)
    hides_run = True
    settings = {  # noqa: RUF012
        "ELASTIC_APM_SERVER_URL": NOWHERE,
        "ELASTIC_APM_CENTRAL_CONFIG": "false",
        "ELASTIC_APM_CLOUD_PROVIDER": "none",
        "ELASTIC_APM_DISABLE_SEND": "true",
    }

    def start(self) -> None:
        importlib.import_module("elasticapm").instrument()

    def work(self) -> None:
        """It has no instrumentation for confluent_kafka: sqlite3's has to work."""
        elasticapm: Any = importlib.import_module("elasticapm")

        class Keep(elasticapm.Client):  # type: ignore[misc]
            def queue(_, kind: str, *_others: object, **_options: object) -> None:  # noqa: N805
                self.seen += filter("span".__eq__, [kind])

        client = Keep({"service_name": "agents"})
        client.begin_transaction("script")
        sqlite3.connect(":memory:").execute("select 1")
        client.end_transaction("agents.py")

    def expected(self) -> int:
        return 2  # the connection's and the query's


class Sentry(Agent):
    """No tracing: events."""

    packages = ("sentry-sdk",)

    def start(self) -> None:
        sentry: Any = importlib.import_module("sentry_sdk")
        transport = importlib.import_module("sentry_sdk.transport")

        class Keep(transport.Transport):  # type: ignore[misc,name-defined]
            def capture_envelope(_, envelope: Any) -> None:  # noqa: N805
                self.seen += filter(None, [envelope.get_event()])

        sentry.init(dsn="http://key@127.0.0.1:9/1", transport=Keep)

    def work(self) -> None:
        logging.getLogger(__name__).error("an event of Sentry's")


class Gevent(Agent):
    """No agent, but it changes threads for all that are in the process."""

    packages = ("gevent",)

    def start(self) -> None:
        importlib.import_module("gevent.monkey").patch_all()

    def work(self) -> None:
        monkey: Any = importlib.import_module("gevent.monkey")
        self.seen += filter(monkey.is_module_patched, ["threading"])


AGENTS: dict[str, type[Agent]] = {
    "ddtrace": Ddtrace,
    "opentelemetry": OpenTelemetry,
    "newrelic": NewRelic,
    "elasticapm": Elastic,
    "sentry_sdk": Sentry,
    "gevent": Gevent,
}


def program(name: str, *steps: str) -> None:
    """Run where an agent is, or is started in one of the steps."""
    strangers: list[object] = []

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if (stranger := far_away(event, arguments)) is not None:
            strangers.append(stranger)
            raise ConnectionRefusedError(stranger)

    sys.addaudithook(guard)
    agent = AGENTS[name]()
    for step in steps:
        if step == "agent":
            agent.start()
        else:
            importlib.import_module("arroyo_metrics_buffer")
    importlib.import_module("arroyo")
    assert "arroyo_metrics_buffer" in sys.modules, "`run` did not reach this program"
    agent.watch()
    load()
    status = importlib.import_module("arroyo_metrics_buffer").status()
    assert [target.state for target in status.targets] == ["patched", "patched"], status
    assert status.protected, status
    agent.work()
    assert len(agent.seen) == agent.expected(), f"{name} saw {len(agent.seen)}"
    assert not strangers, strangers


def load() -> None:
    """Have threads write to, produce by and flush both, and account for every count."""
    # These import arroyo, for which the agent and this package have to be there already.
    accounts: Any = importlib.import_module("arroyo_metrics_buffer._commands.accounts")
    cluster: Any = importlib.import_module("arroyo_metrics_buffer._commands.cluster")
    processor: Any = importlib.import_module("arroyo.processing.processor")
    consumer: Any = importlib.import_module("arroyo.backends.kafka.consumer")
    topic = importlib.import_module("arroyo.types").Topic("topic")
    made, delivered, errors = accounts.Tally(), accounts.Tally(), accounts.Errors()
    with ExitStack() as stack:
        servers = stack.enter_context(cluster.kafka(None))
        stack.enter_context(accounts.tallied_backend(delivered))
        stack.enter_context(accounts.tallied_buffers(made))
        stack.enter_context(accounts.tallied_producers(made))
        stream = processor.StreamProcessor(mock.Mock(), topic, mock.Mock())
        buffer = vars(stream)["_StreamProcessor__metrics_buffer"]
        configuration = {"bootstrap.servers": servers, "client.id": "agents", **cluster.SILENT}
        producer = consumer.ConfluentProducer(configuration)

        def work() -> None:
            with errors.counted("a thread"):
                for turn in range(TURNS):
                    buffer.incr_counter("arroyo.consumer.run.count", 1)
                    buffer.incr_timing("arroyo.consumer.poll.time", turn / 1_000)
                    producer.produce(topic.name, b"value")
                    producer.poll(0)
                    if turn % 50 == 0:
                        buffer.flush()
                        producer.flush(0)

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert producer.flush(30) == 0
        buffer.flush()
    accounted = accounts.balance(made, delivered)
    assert not errors.texts, errors.texts
    assert all(account.lost == 0 for account in accounted), accounted
    counts = {account.metric: account.delivered for account in accounted}
    assert counts["arroyo.consumer.run.count"] == counts[accounts.PRODUCE_STATUS] == MESSAGES


def far_away(event: str, arguments: tuple[Any, ...]) -> object:
    """Whom an audit event is about to talk to, if that is not this machine."""
    if event in ("socket.connect", "socket.sendto"):
        sock, address = arguments
        # A datagram socket that connects sends nothing: so a machine is asked for its own address.
        sends = event == "socket.sendto" or sock.type != socket.SOCK_DGRAM
        return address if sends and type(address) is tuple and address[0] not in LOCAL else None
    if event == "socket.getaddrinfo":
        return None if arguments[0] in (*LOCAL, None) else arguments[0]
    return None


def orders(name: str, agent: type[Agent]) -> Iterator[list[str]]:
    """Commands that start the program with both."""
    start = ["python", str(HERE / "agents.py"), "--program", name]
    yield [*start, "ours", "agent"]
    yield [*start, "agent", "ours"]
    yield [*RUN, *start, "agent"]
    if agent.launcher:
        yield [*agent.launcher, *start, "ours"]
        yield [*agent.launcher, *RUN, *start]
        yield [*agent.launcher, RUN[0], "doctor"]
        yield [*agent.launcher, RUN[0], "reproduce", "--seconds", "0.5"]
        if not agent.hides_run:
            yield [*RUN, *agent.launcher, *start]


def main(wheel: str, *names: str) -> int:
    passed = [are_passed(wheel, name) for name in names or AGENTS]
    return 0 if all(passed) else 1


def are_passed(wheel: str, name: str) -> bool:
    """Install an agent, and try each order."""
    agent = AGENTS[name]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, symlinks=True, with_pip=True)
        commands = Path(folder, "bin")
        python = str(commands / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, wheel, "sentry-arroyo", *agent.packages], check=True)
        package = agent.packages[0].partition(">")[0]
        code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
        version = subprocess.check_output([python, "-c", code], text=True).strip()
        print(f"{package} {version}, Python {sys.version.partition(' ')[0]}", flush=True)
        passed = [is_passed(order, agent, commands) for order in orders(name, agent)]
        if agent.hides_run:
            # That can't work, and has to be told.
            asked = [*RUN, *agent.launcher, RUN[0], "doctor"]
            passed.append(
                is_passed(asked, agent, commands, says="is found first and runs no other")
            )
    return all(passed)


def is_passed(
    command: list[str], agent: type[Agent], commands: Path, says: str | None = None
) -> bool:
    """Start a command that has to succeed or, if it has to say something, to fail."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = {"PATH": os.pathsep.join([str(commands), os.environ["PATH"]])}
    ended = subprocess.run(
        command,
        check=False,
        env=inherited | path | agent.settings,
        executable=commands / command[0],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    if says is None:
        passed = ended.returncode == 0
    else:
        passed = ended.returncode == 1 and says in ended.stdout
    words = " ".join(Path(word).name for word in command)
    print(f"  {'passed' if passed else 'FAILED'}: {words}", flush=True)
    if not passed:
        print(ended.stdout)
    return passed


if __name__ == "__main__":
    if sys.argv[1] == "--program":
        program(*sys.argv[2:])
    else:
        sys.exit(main(*sys.argv[1:]))
