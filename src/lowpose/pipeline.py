"""Work in a thread beside the main one, in order and with little in between: reading ahead, and drawing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from queue import Empty, Full, Queue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_END = object()
_LOOK = 0.05  # seconds between two looks whether the other side has stopped


@contextmanager
def ahead(stream: Generator[T, None, None], depth: int = 1) -> Iterator[Iterator[T]]:
    """`with ahead(stream) as items:` the same items in the same order, made by a thread; up to `depth` wait.

    What the stream raises is raised at its place. However the block ends, the thread has ended after it.
    """
    queue: Queue = Queue(depth)
    stop = threading.Event()

    def work() -> None:
        end: tuple[Any, BaseException | None] = (_END, None)
        try:
            with closing(stream):  # a video file
                for item in stream:
                    if not _put(queue, (item, None), stop):
                        break
        except BaseException as e:  # whatever it is, it belongs to the main thread
            end = (_END, e)
        _put(queue, end, stop)

    def items() -> Iterator[T]:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        yield items()
    finally:
        stop.set()
        thread.join()


class Behind(Generic[T]):
    """`with Behind(work) as later: later(item)` does `work(item)` in a thread, in order; up to `depth` items wait.

    The block ends when all is done; if it ends by an error, what waits is left undone. What `work` raises is raised by the next
    `later`, or at the end of the block. The thread has ended after it.
    """

    def __init__(self, work: Callable[[T], Any], depth: int = 1):
        self._work, self._queue, self._stop = work, Queue(depth), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="behind", daemon=True)

    def __enter__(self) -> Behind[T]:
        self._thread.start()
        return self

    def __call__(self, item: T) -> None:
        if not _put(self._queue, item, self._stop):
            raise self._error

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                _put(self._queue, _END, self._stop)
                self._thread.join()
        finally:  # Ctrl-C while it waits
            self._stop.set()
            self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _loop(self) -> None:
        while not self._stop.is_set():
            with suppress(Empty):
                item = self._queue.get(timeout=_LOOK)
                if item is _END:
                    return
                try:
                    self._work(item)
                except BaseException as e:  # whatever it is, it belongs to the main thread
                    self._error = e
                    self._stop.set()


def _put(queue: Queue, item: Any, stop: threading.Event) -> bool:
    """Put, as soon as there is room; False if the other side has stopped."""
    while not stop.is_set():
        with suppress(Full):
            queue.put(item, timeout=_LOOK)
            return True
    return False
