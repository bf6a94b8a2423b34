"""The classes of arroyo that this package patches, and how."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, Literal

from . import _older, _producer, _shape
from ._core import MetricsBuffer

State = Literal["patched", "waiting", "missing", "unknown", "disabled"]


class Patch:
    """Attributes of a module or a class, to be replaced and put back. Not thread-safe."""

    def __init__(
        self,
        owner: object,
        attributes: dict[str, Any],
        clean_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._owner = owner
        self._attributes = attributes
        self.clean_up = clean_up
        """Has to be called after ``revert()``."""
        self._originals = {name: vars(owner)[name] for name in attributes}

    def apply(self) -> None:
        """Replace them."""
        for name, value in self._attributes.items():
            setattr(self._owner, name, value)

    def revert(self) -> None:
        """Put back what nobody else has replaced meanwhile."""
        for name, value in self._attributes.items():
            if vars(self._owner).get(name) is value:
                setattr(self._owner, name, self._originals[name])


class Target(ABC):
    """A class of arroyo, as a name in one of its modules."""

    module: ClassVar[str]
    attribute: ClassVar[str]
    shapes: ClassVar[tuple[_shape.Shape, ...]]
    """Those that can be patched, the newest first."""

    @property
    def name(self) -> str:
        """The class, as ``module.Class``."""
        return f"{self.module}.{self.attribute}"

    def judge(self, current: object) -> tuple[State, str]:
        """The state of what the name stands for now, and the reason in words.

        ``waiting`` means that it can be patched.
        """
        if current is None:
            return "missing", f"{self.module} has no {self.attribute}"
        if (protection := self.protection(current)) is not None:
            return "patched", protection
        differences = [_shape.difference(current, shape) for shape in self.shapes]
        if None in differences:
            return "waiting", f"{self.module} was imported anew, call install() to patch it"
        return "unknown", f"{self.name} is left alone: {differences[0]}"

    @abstractmethod
    def protection(self, current: object) -> str | None:
        """How the class is patched, in words; None if it is not."""

    @abstractmethod
    def patch(self, module: ModuleType) -> Patch:
        """The patch for the class that is in the module now."""


class MetricsBufferTarget(Target):
    """The name is given to another class: buffers that are made afterwards are that class's."""

    module = "arroyo.processing.processor"
    attribute = "MetricsBuffer"
    bases = (
        (_shape.METRICS_BUFFER, MetricsBuffer),
        (_shape.METRICS_BUFFER_2_26_0, _older.MadeAsArroyos),
        (_shape.METRICS_BUFFER_2_25_0, _older.MadeAsArroyos),
        (_shape.METRICS_BUFFER_2_11_5, _older.MadeAsArroyos),
        (_shape.METRICS_BUFFER_2_10_3, _older.NamedByEnums),
        (_shape.METRICS_BUFFER_1_1_0, _older.OfTimers),
    )
    shapes = tuple(shape for shape, _ in bases)

    def protection(self, current: object) -> str | None:
        if isinstance(current, type) and issubclass(current, MetricsBuffer):
            return f"arroyo uses {current.__module__}.{current.__qualname__}"
        return None

    def patch(self, module: ModuleType) -> Patch:
        arroyos = vars(module)[self.attribute]
        known = (base for shape, base in self.bases if not _shape.difference(arroyos, shape))
        return Patch(module, {self.attribute: _older.replacement(arroyos, next(known))})


class ConfluentProducerTarget(Target):
    """The class keeps its name and changes its methods: producers that exist change with it."""

    module = "arroyo.backends.kafka.consumer"
    attribute = "ConfluentProducer"
    shapes = (_shape.PRODUCER_2_40_3, _shape.PRODUCER_2_38_5, _shape.PRODUCER_2_31_2)

    def judge(self, current: object) -> tuple[State, str]:
        confluent_kafka = sys.modules.get("confluent_kafka")
        if current and current is getattr(confluent_kafka, "Producer", None):
            return "missing", "this arroyo uses confluent_kafka's own, which has no metrics"
        for shape in _shape.PRODUCER_2_31_1, _shape.PRODUCER_2_31_0:
            if _shape.difference(current, shape) is None:
                return "missing", "this arroyo's sends every metric at once and buffers nothing"
        return super().judge(current)

    def protection(self, current: object) -> str | None:
        if _producer.is_patched(current):
            return "its metrics methods are arroyo_metrics_buffer's"
        return None

    def patch(self, module: ModuleType) -> Patch:
        cls = vars(module)[self.attribute]
        return Patch(cls, _producer.methods(module, cls), partial(_producer.hand_back, cls))


TARGETS = (MetricsBufferTarget(), ConfluentProducerTarget())
