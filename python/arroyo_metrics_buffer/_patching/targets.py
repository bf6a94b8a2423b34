"""The classes of arroyo that this package patches, and how."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, ClassVar, NamedTuple

from arroyo_metrics_buffer._core import MetricsBuffer

from . import older, producer, shapes
from .status import State, version

NEWER = "look for a newer release of arroyo-metrics-buffer"


class Finding(NamedTuple):
    """What has become of a target."""

    state: State
    reason: str
    """In words."""
    is_protected: bool
    """Whether no buffer that is made from now on loses anything."""


class Attribute(NamedTuple):
    """What an attribute has to be for this package to do its work."""

    owner: object
    name: str
    value: object


class Change(NamedTuple):
    """Something else than this package's that is in its place now."""

    text: str
    is_extension: bool
    """Whether it is known to call what it replaced: a wrapper of it, or a subclass."""


class Patch:
    """Attributes of a module or a class, to be replaced and put back. Not thread-safe."""

    def __init__(
        self,
        owner: object,
        attributes: dict[str, Any],
        *,
        in_use: bool,
        watched: Iterable[Attribute] = (),
        clean_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._owner = owner
        self._attributes = attributes
        self.clean_up = clean_up
        """Has to be called after ``revert()``."""
        self.originals = {name: vars(owner)[name] for name in attributes}
        self.in_use = in_use
        """Whether anyone may have got hold of the originals before."""
        replaced = (Attribute(owner, name, value) for name, value in attributes.items())
        self.watched = (*replaced, *watched)

    def apply(self) -> None:
        """Replace them."""
        for name, value in self._attributes.items():
            setattr(self._owner, name, value)

    def revert(self) -> None:
        """Put back what nobody else has replaced meanwhile."""
        for name, value in self._attributes.items():
            if vars(self._owner).get(name) is value:
                setattr(self._owner, name, self.originals[name])


def changes(watched: Iterable[Attribute]) -> list[Change]:
    """What somebody else has replaced."""
    return [
        change(f"{_name(owner)}.{name}", theirs, ours)
        for owner, name, ours in watched
        if (theirs := inspect.getattr_static(owner, name, None)) is not ours
    ]


def change(place: str, theirs: object, ours: object) -> Change:
    is_extension = _extends(theirs, ours)
    name = _name(theirs)
    if is_extension and not issubclass(type(theirs), type):
        name = "a wrapper of this package's"  # which has the name of what it wraps
    elif name == place:
        name = "another of that name"
    if type(theirs) is FunctionType:
        name += f" ({theirs.__code__.co_filename}:{theirs.__code__.co_firstlineno})"
    return Change(f"{place} is {name}", is_extension)


# Of any class there is, whatever its metaclass says or does when it is asked.
_class_name = type.__dict__["__name__"].__get__
_class_module = type.__dict__["__module__"].__get__


def _is_arroyos(module: object) -> bool:
    return type(module) is str and module.startswith("arroyo.")


class Target(ABC):
    """A class of arroyo, as a name in one of its modules."""

    module: ClassVar[str]
    attribute: ClassVar[str]
    patchable: ClassVar[tuple[shapes.Shape, ...]]
    """Those that can be patched, the newest first."""
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

    def recognise(self, current: object) -> Finding:
        """Do that, as far as the object lets itself be looked at."""
        if current is None:
            reason = f"{self.module} has no {self.attribute}; {NEWER}"
            return Finding("missing", reason, is_protected=False)
        if (protection := self.protection(current)) is not None:
            return Finding("patched", protection, is_protected=True)
        differences = [shapes.difference(current, shape) for shape in self.patchable]
        if None in differences:
            reason = f"{self.module} was imported anew, call install() to patch it"
            return Finding("waiting", reason, is_protected=False)
        reason = f"it is none that this release knows: {differences[0]}; {NEWER}"
        return Finding("unknown", reason, is_protected=False)

    @abstractmethod
    def protection(self, current: object) -> str | None:
        """How the class is patched, in words; None if it is not."""

    def arroyos_own(self, patch: Patch | None) -> list[type]:
        """The classes of arroyo whose objects, should there be any, lose metrics.

        All that are alive: that of a module which was imported anew, or whose name is another
        class's now, lives on in its objects.
        """
        unused = patch.originals.values() if patch and not patch.in_use else ()
        parent = self.parent()
        classes: list[type] = type.__subclasses__(parent) if isinstance(parent, type) else []
        return [
            each
            for each in classes
            if _class_name(each) == self.attribute and _is_arroyos(_class_module(each))
            if each not in unused and not self.judge(each).is_protected
        ]

    @abstractmethod
    def parent(self) -> object:
        """What arroyo's class is a subclass of."""

    @abstractmethod
    def patch(self, module: ModuleType, *, in_use: bool) -> Patch:
        """The patch for the class that is in the module now, which others may know already."""


def methods_of(cls: type) -> tuple[Attribute, ...]:
    names = ("incr_timing", "incr_counter", "flush")
    return tuple(Attribute(cls, name, inspect.getattr_static(cls, name)) for name in names)


class MetricsBufferTarget(Target):
    """The name is given to another class: buffers that are made afterwards are that class's."""

    module = "arroyo.processing.processor"
    attribute = "MetricsBuffer"
    bases = (
        (shapes.METRICS_BUFFER, MetricsBuffer),
        (shapes.METRICS_BUFFER_2_26_0, older.MadeAsArroyos),
        (shapes.METRICS_BUFFER_2_25_0, older.MadeAsArroyos),
        (shapes.METRICS_BUFFER_2_11_5, older.MadeAsArroyos),
        (shapes.METRICS_BUFFER_2_10_3, older.NamedByEnums),
        (shapes.METRICS_BUFFER_1_1_0, older.OfTimers),
    )
    patchable = tuple(shape for shape, _ in bases)
    # Those that a buffer's safety depends on, as they are before anyone else can patch them.
    methods = MappingProxyType({base: methods_of(base) for _, base in bases})
    watched = methods[MetricsBuffer]

    def recognise(self, current: object) -> Finding:
        if current is None and (version("sentry-arroyo") or "").startswith(("0.", "1.0.")):
            reason = "this arroyo is older than 1.1.0 and buffers nothing"
            return Finding("missing", reason, is_protected=True)
        return super().recognise(current)

    def protection(self, current: object) -> str | None:
        if isinstance(current, type) and issubclass(current, MetricsBuffer):
            return f"arroyo uses {current.__module__}.{current.__qualname__}"
        return None

    def parent(self) -> object:
        return object

    def patch(self, module: ModuleType, *, in_use: bool) -> Patch:
        arroyos = vars(module)[self.attribute]
        known = (base for shape, base in self.bases if not shapes.difference(arroyos, shape))
        base = next(known)
        ours = older.replacement(arroyos, base)
        watched = (method._replace(owner=ours) for method in self.methods[base])
        return Patch(module, {self.attribute: ours}, in_use=in_use, watched=watched)


class ConfluentProducerTarget(Target):
    """The class keeps its name and changes its methods: producers that exist change with it."""

    module = "arroyo.backends.kafka.consumer"
    attribute = "ConfluentProducer"
    patchable = (shapes.PRODUCER_2_40_3, shapes.PRODUCER_2_38_5, shapes.PRODUCER_2_31_2)

    def recognise(self, current: object) -> Finding:
        if current is not None and current is self.parent():
            reason = "this arroyo uses confluent_kafka's own, which has no metrics"
            return Finding("missing", reason, is_protected=True)
        for shape in shapes.PRODUCER_2_31_1, shapes.PRODUCER_2_31_0:
            if shapes.difference(current, shape) is None:
                reason = "this arroyo's sends every metric at once and buffers nothing"
                return Finding("missing", reason, is_protected=True)
        return super().recognise(current)

    def protection(self, current: object) -> str | None:
        if producer.is_patched(current):
            return "its metrics methods are arroyo_metrics_buffer's"
        return None

    def parent(self) -> object:
        return getattr(sys.modules.get("confluent_kafka"), "Producer", None)

    def patch(self, module: ModuleType, *, in_use: bool) -> Patch:
        cls = vars(module)[self.attribute]
        methods = producer.methods(module, cls)
        clean_up = partial(producer.hand_back, cls)
        return Patch(cls, methods, in_use=in_use, clean_up=clean_up)


TARGETS = (MetricsBufferTarget(), ConfluentProducerTarget())


def _extends(theirs: object, ours: object) -> bool:
    with suppress(Exception):  # it wraps itself, or raises where it is looked at
        if isinstance(theirs, type) and isinstance(ours, type):
            return issubclass(theirs, ours)
        return inspect.unwrap(theirs) is ours  # type: ignore[arg-type]
    return False


def _name(thing: object) -> str:
    with suppress(Exception):  # of what raises where it is looked at
        if isinstance(thing, ModuleType):
            return thing.__name__
        module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
        if module and name:
            return f"{module}.{name}"
    cls = type(thing)
    return f"an object of {_class_module(cls)}.{_class_name(cls)}"
