"""Signs of life of a thread, as one that watches it sees them."""

import math
import threading
import time

from bigtrain import beats


def limit_s() -> float:
    work = beats.own().at_work
    assert work is not None
    return work.limit_s


def test_the_first_piece_of_a_kind_may_take_as_long_as_it_takes_and_the_next_little_longer() -> None:
    with beats.work("the first test's"):
        assert limit_s() == math.inf
        time.sleep(0.1)
        beats.beat()
        slow_s = limit_s()
        assert 0.2 <= slow_s < 10
        beats.beat()
        assert limit_s() == slow_s, "a fast piece says nothing against a slow one"
    with beats.work("the first test's"):
        assert limit_s() == slow_s
    assert beats.own().at_work is None


def test_work_that_is_done_once_has_shown_how_long_it_takes() -> None:
    for expected in (True, False):
        with beats.work("the second test's"):
            assert (limit_s() == math.inf) == expected


def test_work_that_fails_has_shown_nothing() -> None:
    for _ in range(2):
        try:
            with beats.work("the third test's"):
                assert limit_s() == math.inf
                raise ValueError
        except ValueError:
            pass


def test_within_other_work_the_inner_one_counts() -> None:
    with beats.work("the outer"):
        with beats.work("the inner"):
            assert beats.own().at_work.kind == "the inner"
        assert beats.own().at_work.kind == "the outer"


def test_whoever_waits_for_a_thread_is_seen_at_its_work() -> None:
    of_thread, working, done = beats.Beats(), threading.Event(), threading.Event()

    def run() -> None:
        beats.use(of_thread)
        with beats.work("the thread's"):
            working.set()
            done.wait()
            beats.beat()

    thread = threading.Thread(target=run)
    thread.start()
    working.wait()
    own = beats.own()
    assert own.at_work is None
    counts = [own.count]
    with own.following(of_thread):
        assert own.at_work.kind == "the thread's"
        assert own.at_work.thread == thread.ident
        counts.append(own.count)
        done.set()
        thread.join()
        counts.append(own.count)
    counts.append(own.count)
    assert counts == sorted(set(counts)), "each is a sign of life"
