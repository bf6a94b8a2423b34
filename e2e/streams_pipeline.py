"""The application that streams_consumer.py runs: it copies messages to another topic, not all.

sentry-streams executes this file in another process, which pickles the pipeline and sends it back.
The functions in this file can't be pickled there, so the pipeline has their names.
"""

from __future__ import annotations

import time
from typing import Any

from sentry_streams.metrics import (  # type: ignore[import-not-found] # not in this environment
    Metric,
    get_metrics,
)
from sentry_streams.pipeline.pipeline import (  # type: ignore[import-not-found]
    Map,
    PredicateFilter,
    StreamSink,
    streaming_source,
)

SOURCE, DESTINATION = "source", "destination"
DROPPED = b"drop"  # what a message begins with that is not copied
STAMP = b" stamped"  # what a copy ends with


class Steps:
    """What the steps do. They write metrics of their own."""

    @staticmethod
    def stamp(message: Any) -> bytes:
        start = time.perf_counter()
        payload: bytes = message.payload
        tags = {"step": "stamp"}
        metrics = get_metrics()
        metrics.increment(Metric.INPUT_MESSAGES, tags=tags)
        metrics.increment(Metric.INPUT_BYTES, len(payload), tags=tags)
        metrics.timing(Metric.DURATION, time.perf_counter() - start, tags=tags)
        return payload + STAMP

    @staticmethod
    def keep(message: Any) -> bool:
        is_kept = not message.payload.startswith(DROPPED)
        get_metrics().increment(Metric.OUTPUT_MESSAGES, tags={"step": "keep", "kept": str(is_kept)})
        return is_kept


pipeline = streaming_source("source", stream_name=SOURCE)
(
    pipeline.apply(Map("stamp", function="streams_pipeline.Steps.stamp"))
    .apply(PredicateFilter("keep", function="streams_pipeline.Steps.keep"))
    .sink(StreamSink("sink", stream_name=DESTINATION))
)
