"""The metrics methods of arroyo's ``ConfluentProducer``, with a buffer that is safe among threads.

They take the place of arroyo's in the class itself, which keeps its name: producers and subclasses
that exist already change with it. Others may wrap them there and keep them for good. So they can be
switched off: then each calls the method of arroyo's that it has replaced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakValueDictionary

from arroyo_metrics_buffer._core import DeliveryBuffer, fork_generation, report_if_ending

from .log import log
from .patch import UNCHANGED, Attribute, Before, Patch, cure, describe, extends

_DELIVERIES = "_ConfluentProducer__deliveries"
_FLUSH_METRICS = "_ConfluentProducer__flush_metrics"
_LATENCIES = "_ConfluentProducer__callback_latency"
_CALLBACK = "_ConfluentProducer__metrics_delivery_callback"
_GENERATION = "_ConfluentProducer__fork_generation"

# What DeliveryBuffer.add() takes.
_STATUSES = frozenset({"success", "error"})
_MAX_COUNT = 2**64

# Those that have a buffer, by id. gc.get_objects() would find them too, but breaks other threads: a
# tuple that it has seen in the making can't be finished (CPython issue 39117).
producers: WeakValueDictionary[int, Any] = WeakValueDictionary()


class Methods:
    """The methods that one class of arroyo's gets, and the buffers of its producers.

    As an attribute of the class it is the buffer of a producer, made when it is first asked for.
    """

    def __init__(self, arroyo: ModuleType, cls: Any) -> None:
        self._arroyo = arroyo
        self.cls: type = cls
        self.are_on = False
        """Whether they count in the buffers; else they call arroyo's own."""
        self._generation = fork_generation()
        self.ours = _methods(self, cls)
        self.arroyos: dict[str, Any] = {name: vars(cls)[name] for name in self.ours}
        self._judged: tuple[object, object, bool] = (None, None, False)
        self._has_told = False

    def __get__(self, producer: object, _class: type | None = None) -> Any:
        if producer is None:
            return self
        buffer = DeliveryBuffer(flush_interval=self._arroyo.METRICS_FREQUENCY_SEC)
        # Of several threads that come here at once, all get the buffer of the first. From then on
        # the attribute is the instance's own, and this is not called any more.
        buffer = vars(producer).setdefault(_DELIVERIES, buffer)
        producers[id(producer)] = producer
        return buffer

    def flush_when_due(self, producer: Any) -> None:
        """Send what is pending, and raise no Exception at the end of the process."""
        try:
            self.flush(producer)
        except BaseException as error:
            if not report_if_ending(error):
                raise

    def flush(self, producer: Any) -> None:
        """Send what is pending, by the method that the producer has for it now."""
        self.forget_parents(producer)
        method: Any = getattr(producer, _FLUSH_METRICS)
        method()  # bound or not: as arroyo calls it
        if not extends(_function(method), self.ours[_FLUSH_METRICS]):
            # That one knows nothing of the buffer, but may be at work on arroyo's counters in
            # another thread, under a lock of its own: what it has there is its to send.
            _send_buffer(producer)

    def send_for(self, producer: Any) -> bool:
        """Whether a method of this package's is among those that flush, or called by one of them.

        Else what is in the buffer is given to where the others' methods find it.
        """
        flush_metrics = _function(getattr(producer, _FLUSH_METRICS))
        if flush_metrics is self.ours[_FLUSH_METRICS]:  # in a wrapper of the wrapt package, say
            return True
        self.forget_parents(producer)
        flush = _function(producer.flush)
        judged = self._judged
        if flush is not judged[0] or flush_metrics is not judged[1]:
            ours = self.ours
            lead = extends(flush_metrics, ours[_FLUSH_METRICS]) or extends(flush, ours["flush"])
            self._judged = judged = (flush, flush_metrics, lead)
        if judged[2]:
            return True
        if _DELIVERIES in vars(producer):
            _give_back(producer)
        if not self._has_told:
            self._has_told = True
            theirs = {"flush": flush, _FLUSH_METRICS: flush_metrics}
            log(
                logging.WARNING,
                "%s is not protected, and counts deliveries by arroyo's own method: %s",
                describe(self.cls),
                cure(f"its method {name}() is {describe(theirs[name])}" for name in theirs),
            )
        return False

    def switch(self, *, on: bool) -> None:
        """Count in the buffers from now on, or don't."""
        self.are_on = on
        self._generation = fork_generation()
        self._has_told = False

    def forget_parents(self, producer: object) -> None:
        """Drop what arroyo's own methods had counted before a fork: the parent reports that.

        Has to be called before they count in the child, and before anything is sent.
        """
        fields = vars(producer)
        generation = fork_generation()
        if fields.get(_GENERATION, self._generation) != generation:
            for counted in _arroyos_own(producer):
                counted.clear()
        fields[_GENERATION] = generation


def methods_of(cls: object) -> Methods | None:
    """The methods that a class, or one that it inherits from, has or had."""
    methods = getattr(cls, _DELIVERIES, None)
    # Not those that it has from a class whose attributes somebody has copied.
    if type(methods) is Methods and issubclass(cls, methods.cls):  # type: ignore[arg-type]
        return methods
    return None


def methods_for(arroyo: ModuleType, cls: type) -> Methods:
    """The methods for arroyo's class, or the one that it inherits from, which keeps them.

    When arroyo's are put back, a thread may be in the midst of one of these, and others may have
    wrapped them.
    """
    methods = methods_of(cls)
    if methods is None:
        methods = Methods(arroyo, cls)
        setattr(cls, _DELIVERIES, methods)
    for name, ours in methods.ours.items():
        if vars(methods.cls).get(name) is ours:  # put back by somebody who had wrapped it
            setattr(methods.cls, name, methods.arroyos[name])
    return methods


class ProducerPatch(Patch):
    """Puts the methods into a class. What others have there that can't be replaced stays.

    Args:
        methods: The methods.
        in_use: Whether anyone may have got hold of the class before.
        before: What others have changed in the class; None if the class is not as known.
    """

    def __init__(self, methods: Methods, *, in_use: bool, before: Before | None) -> None:
        self._methods = methods
        ours, now = methods.ours, vars(methods.cls)
        if before is not None:
            methods.arroyos = {name: now[name] for name in ours}
        free = {name: ours[name] for name in ours if now.get(name) is methods.arroyos[name]}
        others = (Attribute(methods.cls, name, ours[name]) for name in ours if name not in free)
        super().__init__(
            methods.cls, free, in_use=in_use, watched=others, before=before or UNCHANGED
        )

    def apply(self) -> None:
        """Replace arroyo's methods."""
        self._methods.switch(on=True)
        super().apply()

    def revert(self) -> None:
        """Put them back, and have those call them that others keep in wrappers."""
        super().revert()
        self._methods.switch(on=False)

    def clean_up(self) -> None:
        """Give what is pending to arroyo's methods."""
        hand_back(self._methods.cls)


def _methods(methods: Methods, cls: Any) -> dict[str, Any]:
    class ConfluentProducer:
        # Named as arroyo's class, so that the private names in it are the same.

        __deliveries: DeliveryBuffer

        def __init__(self, configuration: Mapping[str, Any]) -> None:
            methods.arroyos["__init__"](self, configuration)
            if methods.are_on:
                _ = self.__deliveries  # made here, since now its first flush interval begins

        def __flush_metrics(self) -> None:  # pyright: ignore[reportUnusedFunction]
            if methods.are_on:
                methods.forget_parents(self)
                send(self)
            else:
                methods.arroyos[_FLUSH_METRICS](self)

        # Without the time where deliveries are counted only, in arroyo 2.31.2 to 2.40.1.
        def __metrics_delivery_callback(  # pyright: ignore[reportUnusedFunction]
            self, error: object, message: object, time_of_produce: float | None = None
        ) -> None:
            if not methods.are_on or (
                # This first, which is fast: it is asked for each delivery.
                self.__class__.__flush_metrics is not ConfluentProducer.__flush_metrics  # noqa: SLF001
                and not methods.send_for(self)
            ):
                times = () if time_of_produce is None else (time_of_produce,)
                methods.arroyos[_CALLBACK](self, error, message, *times)
                return
            latency = None if time_of_produce is None else time.time() - time_of_produce
            if self.__deliveries.record(error, latency):
                methods.flush_when_due(self)

        def flush(self, timeout: float | None = -1) -> int:
            undelivered: int
            if not methods.are_on:
                undelivered = methods.arroyos["flush"](self, timeout)
                return undelivered
            methods.flush(self)
            try:
                undelivered = super(cls, self).flush(timeout)  # type: ignore[misc]
            finally:
                methods.flush(self)  # what was delivered meanwhile
            return undelivered

    return {
        name: value
        for name, value in vars(ConfluentProducer).items()
        if isinstance(value, FunctionType)
    }


def _function(method: Any) -> Any:
    """What a bound method calls; anything else itself, as it may be a mock or a partial."""
    return getattr(method, "__func__", method)


def send(producer: Any) -> None:
    """Send what is pending in a producer's buffer, and what arroyo's own methods have counted."""
    if producer._ConfluentProducer__produce_counters:  # noqa: SLF001
        take_over(producer, producer._ConfluentProducer__deliveries)  # noqa: SLF001
        # So that arroyo's own callback, where it counts, does not flush at every delivery.
        producer._ConfluentProducer__last_record_time = time.time()  # noqa: SLF001
    _send_buffer(producer)


def send_at_end(producer: object) -> None:
    """Send what is pending in a producer's buffer; where methods are switched off, no more."""
    methods = methods_of(type(producer))
    if methods is not None and methods.are_on:
        methods.flush(producer)
    else:
        _send_buffer(producer)


def deliveries_of(producer: object) -> DeliveryBuffer:
    """The buffer of a producer that has one."""
    buffer: DeliveryBuffer = vars(producer)[_DELIVERIES]
    return buffer


def _send_buffer(producer: Any) -> None:
    metrics = producer._ConfluentProducer__metrics  # noqa: SLF001
    producer._ConfluentProducer__deliveries.flush(  # noqa: SLF001
        metrics, producer.producer_name or None
    )


def take_over(producer: object, buffer: DeliveryBuffer) -> None:
    """Move to the buffer what arroyo's own methods have counted.

    What the buffer does not take, since others have put it there, stays where it is.
    """
    counters, latencies = _arroyos_own(producer)
    # Piece by piece: one of arroyo's methods may be at work in another thread.
    for status, count in list(counters.items()):
        if status in _STATUSES and type(count) is int and 0 <= count < _MAX_COUNT:
            # First what may fail for want of memory.
            buffer.add({status: count}, [])
            if (taken := counters.pop(status, 0)) != count:
                counters[status] += taken - count
    samples: list[Any] = []
    try:
        with suppress(IndexError):
            while True:
                samples.append(None)  # makes room before a sample is taken
                samples[-1] = latencies.pop()
        del samples[-1]
        samples.reverse()
        others = [sample for sample in samples if not isinstance(sample, int | float)]
        buffer.add({}, [sample for sample in samples if isinstance(sample, int | float)])
    except MemoryError:
        if samples and samples[-1] is None:
            del samples[-1]
        if latencies:  # of another thread
            samples += latencies
        if _LATENCIES in vars(producer):
            vars(producer)[_LATENCIES] = samples  # which needs no memory
        raise
    latencies += others


def hand_back(cls: type) -> None:
    """Move what is pending in buffers of a class's producers to where arroyo's methods find it."""
    for reference in producers.valuerefs():
        if isinstance(producer := reference(), cls):
            _give_back(producer)
            vars(producer).pop(_GENERATION, None)  # from now on arroyo's own methods count


def _give_back(producer: object) -> None:
    counters, latencies = _arroyos_own(producer)
    buffer = vars(producer)[_DELIVERIES]
    counts, samples = buffer.drain()
    try:
        for status in list(counts):
            counters[status] += counts[status]
            del counts[status]
        latencies += samples
    except MemoryError:
        buffer.add(counts, samples)
        raise


def _arroyos_own(producer: object) -> tuple[MutableMapping[str, int], list[Any]]:
    """The counters and the latencies, of which arroyo 2.31.2 to 2.40.1 has none."""
    fields = vars(producer)
    return (
        fields["_ConfluentProducer__produce_counters"],
        fields.get(_LATENCIES, []),
    )
