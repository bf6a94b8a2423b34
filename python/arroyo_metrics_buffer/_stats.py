"""What the buffers of this process have done."""

from __future__ import annotations

from dataclasses import dataclass

from ._core import stats as fields_by_name


@dataclass(frozen=True)
class BufferStats:
    """What all buffers of one kind have done since the process started, or was forked.

    An entry is one call of the metrics backend: a counter's or a timer's sum, a gauge's value, a
    count of deliveries or one latency. What is pending appears here when it is flushed.

    Attributes:
        flushes: Flushes that had something to send, those that failed included.
        entries_sent: Calls of the backend that returned.
        entries_put_back: Entries that a failed flush kept for the next one, counted each time.
        samples_dropped: Latencies that were dropped because 1,000,000 were pending.
        backend_errors: Flushes that an error of the backend ended.
        outages: Outages of the backend that began. One begins with a flush that an error of the
            backend ends, and ends with the same buffer's next flush that is accepted whole.
        last_backend_error: The last one's type and text, at most 1,000 characters of them.
        seconds_since_last_backend_error: How long ago it was raised.
    """

    flushes: int
    entries_sent: int
    entries_put_back: int
    samples_dropped: int
    backend_errors: int
    outages: int
    last_backend_error: str | None
    seconds_since_last_backend_error: float | None


@dataclass(frozen=True)
class Stats:
    """What the buffers of this process have done.

    Attributes:
        consumer: Those of processors, that is every ``MetricsBuffer``.
        producer: Those of ``ConfluentProducer``.
        streams: Those of sentry-streams, that is every ``BufferedMetricsBackend``.
    """

    consumer: BufferStats
    producer: BufferStats
    streams: BufferStats


def stats() -> Stats:
    """Tell what the buffers of this process have done.

    It takes microseconds, and may be called from any thread and after a fork.

    Returns:
        Counts since the process started; a forked child counts from zero.
    """
    consumer, producer, streams = fields_by_name()
    return Stats(BufferStats(**consumer), BufferStats(**producer), BufferStats(**streams))
