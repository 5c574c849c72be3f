"""Signals: the first is remembered, a second Ctrl-C stops at once, and handlers are restored."""

import os
import signal
import threading

import pytest

from fullbatch.runtime.stop_requests import InterruptedWork, interrupted, interruption, stop_if_interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruption() as caught:
        assert not caught
        assert caught.exit_status == 0
        os.kill(os.getpid(), number)
        assert caught
        assert caught.exit_status == 128 + number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with interruption():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_catch_nothing() -> None:
    observed = []

    def look() -> None:
        with interruption():
            observed.append(signal.getsignal(signal.SIGINT) is before)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert observed == [True]


def test_work_outside_of_steps_stops_where_it_checks() -> None:
    stop_if_interrupted("never")
    with interruption() as caught:
        assert not interrupted()
        caught.receive(signal.SIGTERM, None)
        assert interrupted()
        with pytest.raises(InterruptedWork, match="half done"):
            stop_if_interrupted("half done")
    assert not interrupted()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_ignores_signals() -> None:
    with interruption() as caught:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7 if caught else 0)
        assert os.waitpid(child, 0)[1] == 0
        assert not caught


def test_a_queue_s_signal_is_forwarded_after_the_save() -> None:
    happened = []
    before = signal.signal(signal.SIGUSR2, lambda *_: happened.append("forwarded"))
    try:
        with interruption() as caught:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert caught
            happened.append("saved")
        assert happened == ["saved", "forwarded"]
        with pytest.raises(ValueError, match="mistake"), interruption():
            raise ValueError("mistake")
    finally:
        signal.signal(signal.SIGUSR2, before)
    with interruption():
        assert signal.getsignal(signal.SIGUSR2) is before  # without another handler it is not caught
