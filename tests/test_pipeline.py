"""Threads beside the main one: order, bounds, errors on both sides, and no thread left."""

from __future__ import annotations

import threading

import pytest

from lowpose.pipeline import Behind, ahead


def count(n, made=None, closed=None):
    try:
        for i in range(n):
            if made is not None:
                made.append(i)
            yield i
    finally:
        if closed is not None:
            closed.append(True)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_ahead_keeps_order_and_runs_in_another_thread():
    where = set()

    def stream():
        for i in range(50):
            where.add(threading.current_thread().name)
            yield i

    with ahead(stream()) as items:
        assert list(items) == list(range(50))
    assert where == {"ahead"}


@pytest.mark.parametrize("depth", [1, 3])
def test_ahead_makes_no_more_than_its_depth(depth):
    """With one item taken: that one, `depth` that wait, and the one in the thread's hand."""
    made, closed = [], []
    with ahead(count(100, made, closed), depth) as items:
        assert next(items) == 0
        while len(made) < depth + 2:
            pass
        threading.Event().wait(0.2)  # time to do what it must not
        assert len(made) == depth + 2
    assert len(made) <= depth + 3 and closed == [True]


def test_error_of_the_stream_comes_at_its_place():
    def stream():
        yield from count(3)
        raise ValueError("broken")

    got = []
    with pytest.raises(ValueError, match="broken"), ahead(stream()) as items:
        for item in items:
            got.append(item)
    assert got == [0, 1, 2]


def test_error_in_the_block_ends_the_stream():
    closed = []
    with pytest.raises(KeyboardInterrupt), ahead(count(100, closed=closed)) as items:
        next(items)
        raise KeyboardInterrupt
    assert closed == [True]


def test_behind_does_all_in_order_before_the_block_ends():
    done = []
    with Behind(done.append) as later:
        for i in range(50):
            later(i)
    assert done == list(range(50))


def test_behind_waits_where_work_is_slow():
    go, taken = threading.Event(), []

    def work(item):
        taken.append(item)
        go.wait()

    given = []
    with Behind(work, 2) as later:
        feeder = threading.Thread(target=lambda: [(later(i), given.append(i)) for i in range(10)])
        feeder.start()
        while len(given) < 3:
            pass
        threading.Event().wait(0.2)
        assert given == [0, 1, 2] and taken == [0]  # one in work, two that wait
        go.set()
        feeder.join()
    assert taken == list(range(10))


@pytest.mark.parametrize("last", [3, 40])
def test_error_of_the_work_reaches_the_block(last):
    """At a later item, or at the end where there is none; nothing is worked on after it."""
    done = []

    def work(item):
        if item == 3:
            raise OSError("full")
        done.append(item)

    with pytest.raises(OSError, match="full"), Behind(work) as later:
        for i in range(last + 1):
            later(i)
    assert done == [0, 1, 2]


def test_error_in_the_block_leaves_the_rest_undone():
    go, done = threading.Event(), []

    def work(item):
        go.wait()
        done.append(item)

    with pytest.raises(KeyboardInterrupt), Behind(work, 5) as later:
        for i in range(4):
            later(i)
        while later._queue.qsize() > 3:
            pass
        threading.Timer(0.2, go.set).start()
        raise KeyboardInterrupt
    assert done == [0]
