"""The classes that the package patches, and what status() says of them."""

from __future__ import annotations

import arroyo_metrics_buffer
from arroyo_metrics_buffer import TargetStatus

BUFFER = "arroyo.processing.processor.MetricsBuffer"
PRODUCER = "arroyo.backends.kafka.consumer.ConfluentProducer"
STREAMS = "sentry_streams.metrics.metrics.BufferedMetricsBackend"


def status_of(name: str) -> TargetStatus:
    (target,) = [each for each in arroyo_metrics_buffer.status().targets if each.name == name]
    return target


PRINT_STATE_OF_BUFFER = """
target = arroyo_metrics_buffer.status().targets[0]
print(target.state, target.reason, sep="; ")
"""
