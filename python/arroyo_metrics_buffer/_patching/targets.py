"""The classes of arroyo and sentry-streams that this package patches, and how."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from arroyo_metrics_buffer._core import BufferedMetricsBackend, MetricsBuffer

from . import older, private_names, producer, recognition, shapes
from .patch import (
    NEWER,
    UNCHANGED,
    UPDATE,
    Attribute,
    Before,
    Patch,
    class_name,
    with_subclasses,
)

State = Literal["patched", "waiting", "missing", "unknown", "disabled"]


class Finding(NamedTuple):
    """What has become of a target."""

    state: State
    reason: str
    """In words."""
    is_protected: bool
    """Whether no buffer that is made from now on loses anything."""

    def with_reasons(self, *reasons: str) -> Finding:
        """The same, and why else."""
        return self._replace(reason="; ".join(filter(None, (self.reason, *reasons))))


class Target(ABC):
    """A class of a package, as a name in one of its modules."""

    package: ClassVar[str] = "arroyo"
    distribution: ClassVar[str] = "sentry_arroyo"
    unknown_from: ClassVar[tuple[int, ...]] = (2, 49)
    """The release from which on the class may be another."""
    is_optional: ClassVar[bool] = False
    """Whether nothing is said of it where its package is not installed."""
    module: ClassVar[str]
    attribute: ClassVar[str]
    patchable: ClassVar[tuple[shapes.Shape, ...]]
    """Those that can be patched, the newest first."""
    kept: ClassVar[frozenset[str]] = frozenset()
    """Methods that stay the class's own, so that nobody else may have replaced them."""
    watched: ClassVar[tuple[Attribute, ...]] = ()
    """What its safety depends on where no patch is in place, as it is before others change it."""

    @property
    def name(self) -> str:
        """The class, as ``module.Class``."""
        return f"{self.module}.{self.attribute}"

    def judge(self, current: object) -> Finding:
        """Find out what the name stands for now. ``waiting`` means that it can be patched."""
        try:
            return self.recognise(current)
        except Exception as error:  # noqa: BLE001 - of a proxy, say, whose object is not there yet
            reason = f"it raises {type(error).__name__} where it is looked at"
            return Finding("unknown", reason, is_protected=False)

    def judge_in(self, module: ModuleType) -> Finding:
        """Find out what the name stands for in a module."""
        try:
            current = getattr(module, self.attribute, None)
        except Exception as error:  # noqa: BLE001 - of what stands in the place of the module
            reason = f"{self.module} raises {type(error).__name__} where it is looked at"
            return Finding("unknown", reason, is_protected=False)
        return self.judge(current)

    def recognise(self, current: object) -> Finding:
        """Do that, as far as the object lets itself be looked at."""
        if current is None:
            reason = f"{self.module} has no {self.attribute}; {NEWER}"
            return Finding("missing", reason, is_protected=False)
        if (protection := self.protection(current)) is not None:
            return Finding("patched", protection, is_protected=True)
        if self.match(current) is not None:
            reason = f"{self.module} has its own class, call install() to patch it"
            return Finding("waiting", reason, is_protected=False)
        reason = recognition.why_not(current, self.patchable, self.package)
        return Finding("unknown", reason, is_protected=False)

    def match(self, current: object) -> tuple[shapes.Shape, Before] | None:
        """Find the shape of a class that can be patched, and what others have changed in it."""
        for shape in self.patchable:
            if shapes.difference(current, shape) is None:
                return shape, UNCHANGED
        return recognition.match(
            current, self.patchable, kept=self.kept, may_be_fixed=self._is_known_release
        )

    def _is_known_release(self) -> bool:
        release = recognition.release(self.distribution)
        return release is not None and release < self.unknown_from

    @abstractmethod
    def protection(self, current: object) -> str | None:
        """How the class is patched, in words; None if it is not."""

    def unpatched_classes(self, patch: Patch | None) -> list[type]:
        """The classes of the package whose objects, should there be any, lose metrics.

        All that are alive: that of a module which was imported anew, or whose name is another
        class's now, lives on in its objects.
        """
        unused = patch.originals.values() if patch and not patch.in_use else ()
        return [
            each
            for each in self.candidates()
            if class_name(each) == self.attribute and recognition.package_of(each) == self.package
            if each not in unused and not self.judge(each).is_protected
        ]

    @abstractmethod
    def candidates(self) -> Iterable[type]:
        """The classes that derive from what the package's class derives from, that among them."""

    @abstractmethod
    def patch(self, module: ModuleType, *, in_use: bool) -> Patch:
        """The patch for the class that is in the module now, which others may know already."""


def _confluent_kafkas_now() -> tuple[type, ...]:
    """What ``confluent_kafka.Producer`` is, and was before agents put subclasses in its place."""
    now = getattr(sys.modules.get("confluent_kafka"), "Producer", None)
    base = shapes.confluent_kafkas_producer()
    if not isinstance(now, type) or base is None:
        return ()
    return tuple(each for each in now.__mro__ if issubclass(each, base))


def _methods_of(cls: type, names: Iterable[str]) -> tuple[Attribute, ...]:
    """The methods that a buffer's safety depends on, before anyone else can patch them."""
    return tuple(Attribute(cls, name, getattr(cls, name)) for name in names)


class ReplacedTarget(Target):
    """The name is given to another class: buffers that are made afterwards are that class's."""

    ours: ClassVar[type]
    """What that class is, or derives from."""

    def protection(self, current: object) -> str | None:
        if isinstance(current, type) and issubclass(current, self.ours):
            return f"{self.package} uses {current.__module__}.{current.__qualname__}"
        return None


class MetricsBufferTarget(ReplacedTarget):
    """A processor's buffer."""

    ours = MetricsBuffer
    module = "arroyo.processing.processor"
    attribute = "MetricsBuffer"
    replacements = (
        (shapes.METRICS_BUFFER, MetricsBuffer),
        (shapes.METRICS_BUFFER_2_26_0, older.WithOriginalConstructor),
        (shapes.METRICS_BUFFER_2_25_0, older.WithOriginalConstructor),
        (shapes.METRICS_BUFFER_2_11_5, older.WithOriginalConstructor),
        (shapes.METRICS_BUFFER_2_10_3, older.WithEnumNames),
        (shapes.METRICS_BUFFER_1_1_0, older.TimersOnly),
    )
    patchable = tuple(shape for shape, _ in replacements)
    methods = MappingProxyType(
        {cls: _methods_of(cls, private_names.METHODS) for _, cls in replacements}
    )
    watched = methods[MetricsBuffer]

    def recognise(self, current: object) -> Finding:
        if current is None and (recognition.release(self.distribution) or (1, 1)) < (1, 1):
            reason = "this arroyo is older than 1.1.0 and buffers nothing"
            return Finding("missing", reason, is_protected=True)
        return super().recognise(current)

    def candidates(self) -> Iterable[type]:
        return type.__subclasses__(object)

    def patch(self, module: ModuleType, *, in_use: bool) -> Patch:
        original = vars(module)[self.attribute]
        found, before = self.match(original) or (self.patchable[0], UNCHANGED)
        cls = next(c for shape, c in self.replacements if shape is found)
        ours = older.replacement(original, cls)
        watched = (method._replace(owner=ours) for method in self.methods[cls])
        return Patch(
            module,
            {self.attribute: ours},
            in_use=in_use,
            watched=watched,
            before=before,
        )


class ConfluentProducerTarget(Target):
    """The class keeps its name and changes its methods: producers that exist change with it."""

    module = "arroyo.backends.kafka.consumer"
    attribute = "ConfluentProducer"
    patchable = (shapes.PRODUCER_2_40_3, shapes.PRODUCER_2_38_5, shapes.PRODUCER_2_31_2)
    kept = frozenset({"produce", "_ConfluentProducer__delivery_callback"})

    def recognise(self, current: object) -> Finding:
        if any(current is each for each in _confluent_kafkas_now()):
            reason = "this arroyo uses confluent_kafka's own, which has no metrics"
            return Finding("missing", reason, is_protected=True)
        for shape in shapes.PRODUCER_2_31_1, shapes.PRODUCER_2_31_0:
            if shapes.difference(current, shape) is None:
                reason = "this arroyo's sends every metric at once and buffers nothing"
                return Finding("missing", reason, is_protected=True)
        methods = producer.methods_of(current)
        if methods is not None and not methods.are_on:
            # Whatever others have wrapped there meanwhile.
            return Finding("waiting", "uninstall() was called", is_protected=False)
        return super().recognise(current)

    def protection(self, current: object) -> str | None:
        methods = producer.methods_of(current)
        if methods is not None and methods.are_on:
            return "its metrics methods are arroyo_metrics_buffer's"
        return None

    def candidates(self) -> Iterable[type]:
        base = shapes.confluent_kafkas_producer()
        return with_subclasses([base]) if base else []

    def patch(self, module: ModuleType, *, in_use: bool) -> Patch:
        methods = producer.methods_for(module, vars(module)[self.attribute])
        _, before = self.match(methods.cls) or (None, None)
        return producer.ProducerPatch(methods, in_use=in_use, before=before)


class BufferedMetricsBackendTarget(ReplacedTarget):
    """What sentry-streams sends its metrics and arroyo's through."""

    package = "sentry_streams"
    distribution = "sentry_streams"
    unknown_from = (0, 0, 70)
    is_optional = True
    module = "sentry_streams.metrics.metrics"
    attribute = "BufferedMetricsBackend"
    ours = BufferedMetricsBackend
    patchable = (shapes.BUFFERED_BACKEND,)
    watched = _methods_of(ours, ("increment", "gauge", "timing", "flush"))

    def recognise(self, current: object) -> Finding:
        release = recognition.release(self.distribution) or self.unknown_from
        if current is None and release < (0, 0, 41):
            reason = "this sentry-streams is older than 0.0.41 and buffers nothing"
            return Finding("missing", reason, is_protected=True)
        found = super().recognise(current)
        if found.state == "unknown" and release[:3] == (0, 0, 41):
            return found._replace(reason=f"only that of 0.0.42 and newer can be replaced: {UPDATE}")
        return found

    def candidates(self) -> Iterable[type]:
        protocol: Any = Protocol
        return with_subclasses(type.__subclasses__(protocol))

    def patch(self, module: ModuleType, *, in_use: bool) -> Patch:
        _, before = self.match(vars(module)[self.attribute]) or (None, UNCHANGED)
        ours = {self.attribute: self.ours}
        return Patch(module, ours, in_use=in_use, watched=self.watched, before=before)


private_names.lend(MetricsBufferTarget.methods)

TARGETS = (MetricsBufferTarget(), ConfluentProducerTarget(), BufferedMetricsBackendTarget())
