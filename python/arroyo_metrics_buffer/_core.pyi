"""The compiled part of arroyo_metrics_buffer."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, SupportsFloat, SupportsIndex, TypeAlias, final

from typing_extensions import disjoint_base

__all__ = [
    "BufferedMetricsBackend",
    "DeliveryBuffer",
    "MetricsBuffer",
    "__version__",
    "buffers",
    "configure",
    "drain_totals",
    "fork_generation",
    "move_totals",
    "on_backend_error",
    "report_if_ending",
    "set_ending",
    "stats",
]

__version__: str
"""The version of the package, which `Cargo.toml` has."""

_Entry: TypeAlias = tuple[str, float, Mapping[str, str]]
"""A name, a total or the value of a gauge, and tags."""

@disjoint_base
class MetricsBuffer:
    """A thread-safe metrics buffer with the interface of arroyo's.

    It sums timings and counts by name and sends the sums to a metrics backend, at most once per
    flush interval, from whichever thread makes the next call. Every method may be called from any
    thread at any time, from inside the backend and after a fork too. Nothing is lost and nothing is
    counted twice.

    Args:
        metrics: The backend, an object with `timing(name, value)` and `increment(name, value)`.
            None stands for `arroyo.utils.metrics.get_metrics()`, as in arroyo's own class, which
            looks that function up in `arroyo.processing.processor`.
        flush_interval: Seconds that have to pass before a call sends what is pending. With 0 or
            less every call sends it. None stands for
            `arroyo.processing.processor.METRICS_FREQUENCY_SEC` as it is now, and for the 1.0 that
            it is in every release where that module is not loaded.
        clock: A callable that returns seconds, for tests. None stands for the one given to
            `install()`, by default the system's monotonic coarse clock, which no step of the wall
            clock moves.

    Raises:
        ImportError: There is no `metrics` and arroyo can't be imported.
        TypeError: `flush_interval` is not a number, or `clock` not callable.
        ValueError: `flush_interval` is NaN.
        RuntimeError: The buffer is initialised already.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    def __init__(
        self,
        metrics: Any = None,
        *,
        flush_interval: SupportsFloat | SupportsIndex | None = None,
        clock: Callable[[], SupportsFloat | SupportsIndex] | None = None,
    ) -> None: ...
    def incr_timing(self, metric: str, duration: SupportsFloat | SupportsIndex) -> None:
        """Add to the sum of a timer, then flush if the flush interval has passed.

        Args:
            metric: The timer's name.
            duration: What to add, usually seconds. NaN and infinities are summed like any float.

        Raises:
            TypeError: `metric` is not a str or `duration` not a number. Nothing was added.
            BaseException: What the backend raised, if this call flushed; see `flush()`.
        """

    def incr_counter(self, metric: str, delta: SupportsIndex) -> None:
        """Add to the sum of a counter, then flush if the flush interval has passed.

        Args:
            metric: The counter's name.
            delta: What to add, a count.

        Raises:
            TypeError: `metric` is not a str or `delta` not an integer. Nothing was added.
            OverflowError: `delta` or the sum does not fit in 64 bits. Nothing was added.
            BaseException: What the backend raised, if this call flushed; see `flush()`.
        """

    def flush(self) -> None:
        """Send every sum to the backend: timers, then counters, each in the order of first touch.

        Other threads go on adding meanwhile; what they add is pending for the next flush.

        Raises:
            BaseException: What the backend raised. What it had not accepted by then, the sum it was
                called with included, is pending again. With `install(on_backend_error="log")` it is
                logged, unless it is no Exception, as KeyboardInterrupt is none.
        """

    def snapshot(self) -> tuple[dict[str, float], dict[str, int]]:
        """Tell what is pending, without flushing it.

        Returns:
            The timers and the counters, each a dict by name in the order of first touch.
        """

    @property
    def metrics(self) -> Any:
        """The backend that flushes send to. It may be replaced at any time, from any thread."""

    @metrics.setter
    def metrics(self, metrics: Any) -> None: ...
    @metrics.deleter
    def metrics(self) -> None: ...

@disjoint_base
class BufferedMetricsBackend:
    """A thread-safe metrics buffer with the interface of sentry-streams'.

    It sums timings and counts by name and tags, keeps the last value of each gauge, and sends them
    to a metrics backend, at most once per interval, from whichever thread makes the next call.
    Every method may be called from any thread at any time, from inside the backend and after a fork
    too. Nothing is lost and nothing is counted twice.

    Tags are a dict of strings. Two calls are of the same metric if their names are equal, and their
    tags after "|" in a value is replaced by "_". The backend gets the name and the dict of the last
    call, so do not change a dict after the call.

    Args:
        backend: An object with `timing(name, value, tags)`, `increment(name, value, tags)` and
            `gauge(name, value, tags)`.
        throttle_interval_sec: Seconds that have to pass before a call sends what is pending. With 0
            or less every call sends it. The first call does.
        clock: A callable that returns seconds, for tests. None stands for the one given to
            `install()`, by default the system's monotonic coarse clock, or for `time.time` where
            that is not Python's own when the buffer is made, but a test's.

    Raises:
        TypeError: `throttle_interval_sec` is not a number, or `clock` not callable.
        ValueError: `throttle_interval_sec` is NaN.
        RuntimeError: The buffer is initialised already.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    def __init__(
        self,
        backend: Any,
        throttle_interval_sec: SupportsFloat | SupportsIndex,
        *,
        clock: Callable[[], SupportsFloat | SupportsIndex] | None = None,
    ) -> None: ...
    def increment(
        self,
        name: str,
        value: SupportsFloat | SupportsIndex = 1,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add to the sum of a counter, then flush if the interval has passed.

        Args:
            name: The counter's name.
            value: What to add, an int or a float.
            tags: Its tags by key, or None.

        Raises:
            TypeError: `name` or the value of a tag is not a str, or `value` not a number. Nothing
                was added.
            OverflowError: `value` or the sum is an int that does not fit in 64 bits. Nothing was
                added.
            BaseException: What the backend raised, if this call flushed; see `flush()`.
        """
    def gauge(
        self,
        name: str,
        value: SupportsFloat | SupportsIndex,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Set a gauge, then flush if the interval has passed.

        Args:
            name: The gauge's name.
            value: Its value, an int or a float.
            tags: Its tags by key, or None.

        Raises:
            TypeError: As in `increment()`. The gauge is as it was.
            OverflowError: `value` is an int that does not fit in 64 bits. The gauge is as it was.
            BaseException: What the backend raised, if this call flushed; see `flush()`.
        """
    def timing(
        self,
        name: str,
        value: SupportsFloat | SupportsIndex,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add to the sum of a timer, then flush if the interval has passed.

        Args:
            name: The timer's name.
            value: What to add, an int or a float.
            tags: Its tags by key, or None.

        Raises:
            TypeError: As in `increment()`. Nothing was added.
            OverflowError: As in `increment()`. Nothing was added.
            BaseException: What the backend raised, if this call flushed; see `flush()`.
        """
    def flush(self) -> None:
        """Send what is pending to the backend: timers, then counters, then gauges.

        Each kind is sent in the order of first touch. Other threads go on adding meanwhile; what
        they add is pending for the next flush.

        Raises:
            BaseException: What the backend raised. What it had not accepted by then, the entry it
                was called with included, is pending again. A gauge that was set meanwhile keeps the
                newer value. With `install(on_backend_error="log")` it is logged, unless it is no
                Exception, as KeyboardInterrupt is none.
        """
    def snapshot(self) -> tuple[list[_Entry], list[_Entry], list[_Entry]]:
        """Tell what is pending, without flushing it.

        Returns:
            The timers, the counters and the gauges, each a list of `(name, value, tags)` in the
            order of first touch.
        """

@final
class DeliveryBuffer:
    """What the delivery callbacks of arroyo's `ConfluentProducer` feed.

    It counts deliveries by status, keeps how long each took, and sends both to a metrics backend.
    Every method may be called from any thread at any time, from inside the backend and after a fork
    too. Nothing is lost and nothing is counted twice. While the backend fails, at most 1,000,000
    latencies are kept.

    Args:
        flush_interval: Seconds that have to pass before `record()` asks for a flush. With 0 or less
            every call does.
        clock: A callable that returns seconds, for tests. None stands for the one given to
            `install()`, by default the system's monotonic coarse clock.

    Raises:
        TypeError: `flush_interval` is not a number, or `clock` not callable.
        ValueError: `flush_interval` is NaN.
    """

    def __new__(
        cls,
        *,
        flush_interval: SupportsFloat | SupportsIndex,
        clock: Callable[[], SupportsFloat | SupportsIndex] | None = None,
    ) -> Self: ...
    def record(self, error: object, latency: SupportsFloat | SupportsIndex | None = None) -> bool:
        """Count one delivery.

        Args:
            error: None for a success; anything else is an error.
            latency: Seconds that it took, or None where that is not measured.

        Returns:
            Whether the flush interval has passed, so that the caller has to flush. Of several
            threads that call at once, one has to.

        Raises:
            TypeError: `latency` is not a number. Nothing was counted.
        """

    def add(self, counts: dict[str, int], latencies: list[float]) -> None:
        """Add deliveries that were counted elsewhere.

        Args:
            counts: Deliveries by status, "success" or "error".
            latencies: Seconds that they took.

        Raises:
            ValueError: There is another status. Nothing was added.
            TypeError: A count is not an integer, or a latency not a number. Nothing was added.
            OverflowError: A count is negative or does not fit in 64 bits. Nothing was added.
        """

    def flush(self, metrics: object, producer_name: object) -> None:
        """Send what is pending to a backend: counts, then latencies, in the order they came in.

        Other threads go on recording meanwhile; what they record is pending for the next flush.

        Args:
            metrics: The backend, an object with `increment(*, name, value, tags)` and
                `timing(*, name, value, tags)`, where `tags` is a dict.
            producer_name: For the tags of both metrics, or None.

        Raises:
            BaseException: What the backend raised. What it had not accepted by then, the entry it
                was called with included, is pending again. With
                `install(on_backend_error="log")` it is logged, unless it is no Exception, as
                KeyboardInterrupt is none.
        """

    def drain(self) -> tuple[dict[str, int], list[float]]:
        """Take what is pending, for the caller to count it elsewhere.

        Latencies that were dropped are counted in `stats()`.

        Returns:
            Deliveries by status, and the seconds that they took.
        """

    def snapshot(self) -> tuple[dict[str, int], list[float]]:
        """Tell what is pending, without flushing it.

        Returns:
            Deliveries by status, and the seconds that they took.
        """

def drain_totals(buffer: MetricsBuffer, *, counters: bool) -> dict[str, Any]:
    """Take the timers or the counters that are pending in a buffer, to count them elsewhere.

    Safe to call from any thread.

    Args:
        buffer: The buffer.
        counters: Whether to take the counters, or the timers.

    Returns:
        Totals by name, in the order of first touch.
    """

def move_totals(totals: dict[Any, Any], buffer: MetricsBuffer, *, counters: bool) -> None:
    """Move totals that were counted elsewhere to a buffer, which does not flush for it.

    Safe to call from any thread. Each total is in one of the two, whatever is raised. What the
    buffer does not take stays where it is: a name that is no str, a total that is no number, a
    count that does not fit in 64 bits, or would not with what is pending.

    Args:
        totals: Totals by name.
        buffer: The buffer.
        counters: Whether they are counters, or timers.
    """

def set_ending(ending: bool) -> None:
    """Have each call that adds flush at once from now on, or have that no more.

    It begins with the next flush of the call's buffer, and ends with a flush that fails. What such
    a flush raises is reported by `sys.unraisablehook`, if it is an Exception.
    """

def report_if_ending(error: BaseException) -> bool:
    """Report by `sys.unraisablehook` what a flush raised, if the process is at its end.

    There any call may flush, and none is to fail for it. What is no Exception is not reported.

    Returns:
        Whether it was reported; else it is for the caller to raise.
    """

def buffers() -> list[MetricsBuffer | BufferedMetricsBackend]:
    """Return every `MetricsBuffer` and `BufferedMetricsBackend` that is alive.

    Returns:
        The buffers, in the order in which they were made.
    """

def fork_generation() -> int:
    """Tell how many forks lie between this process and the one that imported the package."""

def configure(
    *,
    clock: Callable[[], SupportsFloat | SupportsIndex] | None,
    on_backend_error: Literal["raise", "log"] | Callable[[Exception], object],
) -> None:
    """Choose the clock and the fate of backend errors for all buffers of the process.

    Safe to call from any thread.

    Args:
        clock: What buffers made from now on without a clock of their own use: a callable that
            returns seconds, or None for the native monotonic clock.
        on_backend_error: "raise", "log", or a callable that gets the exception; for all buffers
            from now on.

    Raises:
        TypeError: `clock` is not callable, or `on_backend_error` neither a str nor callable.
        ValueError: `on_backend_error` is a str, and neither "raise" nor "log".
    """

def on_backend_error() -> Literal["raise", "log"] | Callable[[Exception], object]:
    """Tell what becomes of an error of a backend, as `configure()` takes it.

    Returns:
        "raise", "log", or the callable that gets it.
    """

def stats() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Tell what the buffers of this process have done so far. Safe to call from any thread.

    Returns:
        For the buffers of consumers, of producers and of sentry-streams, the fields of
        `BufferStats` by name.
    """
