from ._core import MetricsBuffer
