"""What a call costs: alone, among threads, with many names, with names that are not interned."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from contenders import BUFFERS, COUNTER, OTHERS, TIMER, Contender, Nothing
from measuring import OURS, Case, nanoseconds

CALLS = 20_000  # a batch: less than a millisecond, shorter than most interruptions
TURN = 0.03  # seconds that a thread calls: several of CPython's switch intervals of 5 ms
THREADS = (1, 2, 4, 8)
NAMES = 10_000


def cases() -> Iterator[Case]:
    counting = {n: job(c, c.call(repr(COUNTER))) for n, c in ALL.items()}
    yield Case("call", "incr_counter", "ns", 200, counting)
    timing = f"counter.incr_timing({TIMER!r}, 0.001)"
    yield Case("call", "incr_timing", "ns", 200, {n: job(c, timing) for n, c in TIMED.items()})
    for threads in THREADS:
        among = {n: among_threads(c, threads) for n, c in ALL.items()}
        yield Case("threads", f"{threads}", "million calls/s", 15, among)
    scaling = {name: two_to_one(ALL[name]) for name in (EMPTY, OURS)}
    yield Case("scaling", "calls of two threads", "times those of one", 40, scaling)
    names = [f"metric {i}" for i in range(NAMES)]
    rotating = {n: over(c, names) for n, c in NAMED.items()}
    yield Case("names", "10,000 names in rotation", "ns", 30, rotating)
    # The same text in as many objects.
    copies = [f"{COUNTER}{''.join([])}" for _ in range(1_000)] * 10
    yield Case("names", "not interned", "ns", 30, {n: over(c, copies) for n, c in NAMED.items()})


ALL = BUFFERS | OTHERS
EMPTY = "empty method in Rust"
TIMED = BUFFERS | {EMPTY: OTHERS[EMPTY]}
NAMED = {name: contender for name, contender in ALL.items() if "{name}" in contender.arguments}


def job(contender: Contender, call: str) -> Callable[[], float]:
    return nanoseconds(call, {"counter": contender.make(Nothing())}, CALLS)


def over(contender: Contender, names: list[str]) -> Callable[[], float]:
    counter = contender.make(Nothing())
    loop = f"for name in names: {contender.call('name')}"
    once = compile(loop, "over", "exec")

    def run() -> float:
        start = time.perf_counter()
        exec(once, {"names": names, "counter": counter})  # noqa: S102
        return (time.perf_counter() - start) / len(names) * 1e9

    return run


def two_to_one(contender: Contender) -> Callable[[], float]:
    one, two = (among_threads(contender, threads) for threads in (1, 2))
    return lambda: two() / one()


def among_threads(contender: Contender, threads: int) -> Callable[[], float]:
    # Each thread looks the method up once. Without the GIL, lookups by several threads contend for
    # the reference count of the object, whatever its method does.
    setup = f"call = counter.{contender.method}"
    call = f"call({contender.arguments.format(name=repr(COUNTER))})"
    names = {"counter": contender.make(Nothing())}
    calls = round(TURN * 1e9 / nanoseconds(call, names, 1_000, setup)())
    batch = nanoseconds(call, names, calls, setup)

    def run() -> float:
        spans: list[tuple[float, float]] = []
        start = threading.Barrier(threads)

        def work() -> None:
            start.wait()
            begin = time.perf_counter()
            batch()
            spans.append((begin, time.perf_counter()))

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = max(end for _, end in spans) - min(begin for begin, _ in spans)
        return threads * calls / seconds / 1e6

    return run
