"""A Kafka broker and a StatsD server on this machine, for as long as a ``with`` block runs.

They are the released ones: Maven resolves Kafka's jars, Go builds Prometheus' statsd_exporter. Both
are kept in a cache folder. They listen on free ports of the loopback interface, or a Unix socket.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

from ending import Failed, process_group

POM = Path(__file__).with_name("pom.xml")
STATSD_EXPORTER = "github.com/prometheus/statsd_exporter@v0.31.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arroyo-metrics-buffer"

FETCH_TIMEOUT = 600  # seconds to download and to build
START_TIMEOUT = 60  # seconds
STOP_TIMEOUT = 15  # seconds; who takes longer is killed

Series = tuple[str, frozenset[tuple[str, str]]]
"""A metric's name and its labels."""


# What a server needs: commands, and how people call them.
OF_KAFKA = {"java": "Java (17 or newer)", "mvn": "Maven"}
OF_STATSD = {"go": "Go"}


def missing(tools: Mapping[str, str]) -> list[str]:
    """Those that this machine lacks."""
    return [name for command, name in tools.items() if shutil.which(command) is None]


class Broker:
    """A Kafka broker, which can be killed and started again: it keeps its address and messages."""

    def __init__(self, command: list[str], address: str, log: Path, stack: ExitStack) -> None:
        self.address = address
        """As bootstrap servers."""
        self._command = command
        self._log = log
        self._stack = stack

    def start(self) -> None:
        self._server = self._stack.enter_context(running(self._command, self._log))
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        await_start(self._server, self._log, lambda: bool(admin.list_topics(timeout=1).brokers))

    def kill(self) -> None:
        self._server.kill()
        self._server.wait()


@contextmanager
def kafka(folder: Path) -> Iterator[Broker]:
    """A Kafka broker in KRaft mode, its own controller.

    Args:
        folder: Where it puts its logs and messages.

    Yields:
        The broker, started. Topics that are asked for come into being.
    """
    properties, log = folder / "server.properties", folder / "kafka.log"
    address, controller = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    settings = {
        "node.id": 1,
        "process.roles": "broker,controller",
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{address},CONTROLLER://{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": folder / "messages",
        "auto.create.topics.enable": "true",
        "default.replication.factor": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 1,  # of 50, each with files of its own
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,  # of 3 s, in which more members might join
    }
    properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    # Less memory and a quicker start than a broker that is to run for months would have.
    java = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    java += ["-cp", f"{kafka_jars()}/*"]
    cluster = "AAAAAAAAAAAAAAAAAAAAAQ"  # any 16 bytes, in base64
    run(*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties))
    with ExitStack() as stack:
        broker = Broker([*java, "kafka.Kafka", str(properties)], address, log, stack)
        broker.start()
        yield broker


def kafka_jars() -> Path:
    """The folder with Kafka's jars, filled by Maven if it is not there."""
    version = ElementTree.parse(POM).findtext("{*}dependencies/{*}dependency/{*}version")
    copy = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
    return cached(
        f"kafka-{version}", lambda folder: run(*copy, f"-DoutputDirectory={folder.resolve()}")
    )


@dataclass(frozen=True)
class StatsD:
    """A StatsD server that understands DogStatsD's tags."""

    socket: Path
    """The Unix datagram socket that takes the metrics."""
    url: str
    """Where it tells what it has got."""

    def scrape(self) -> dict[Series, float]:
        """What it has got so far.

        A counter's name ends in ``_total``, a timer is the two series ``_sum`` and ``_count`` (with
        the StatsD unit of milliseconds taken to seconds), and in names ``.`` has become ``_``.
        """
        with urllib.request.urlopen(self.url, timeout=START_TIMEOUT) as response:
            text = response.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@contextmanager
def statsd(folder: Path) -> Iterator[StatsD]:
    """A StatsD server.

    Args:
        folder: Where it puts its log and its socket, whose path has to be a short one.

    Yields:
        Where to send to and to read from.
    """
    log, address = folder / "statsd.log", f"127.0.0.1:{free_port()}"
    server_socket = folder / "statsd.sock"
    command = [
        str(statsd_exporter()),
        f"--web.listen-address={address}",
        "--statsd.listen-udp=",
        "--statsd.listen-tcp=",
        f"--statsd.listen-unixgram={server_socket}",
    ]
    with running(command, log) as server:
        statsd = StatsD(server_socket, f"http://{address}/metrics")
        await_start(server, log, lambda: server_socket.exists() and bool(statsd.scrape()))
        yield statsd


def statsd_exporter() -> Path:
    """The server's binary, built by Go if it is not there."""
    name = STATSD_EXPORTER.rpartition("/")[2]

    def build(folder: Path) -> None:
        run("go", "install", STATSD_EXPORTER, GOBIN=str(folder.resolve()))

    return cached(name, build) / "statsd_exporter"


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """A folder in the cache; it is either not there or complete, whoever else fills it."""
    folder = CACHE / name
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        print(f"fetching {name} into {CACHE}", flush=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{name}.") as unfinished:
            fill(whole := Path(unfinished, "whole"))
            with suppress(FileExistsError):
                whole.rename(folder)
    return folder


def run(*command: str, **environment: str) -> None:
    """Run a command to its end; what it says is shown if it fails."""
    try:
        with process_group() as group:
            subprocess.run(
                command,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=FETCH_TIMEOUT,
                env={**os.environ, **environment},
                process_group=group,
            )
    except subprocess.CalledProcessError as error:
        raise Failed(f"{error.stdout}{error}") from None
    except subprocess.TimeoutExpired as error:
        raise Failed(str(error)) from None


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server, stopped at the end."""
    with log.open("ab") as output, process_group() as group:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=group,
        )
        try:
            yield server
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(STOP_TIMEOUT)
        finally:
            server.kill()
            server.wait()


def await_start(
    server: subprocess.Popen[bytes], log: Path, has_started: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(KafkaException, OSError):
            if has_started():
                return
        time.sleep(0.1)
    name = log.stem
    raise Failed(f"{log.read_text(errors='replace')[-2000:]}\n{name} has not started")


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port
