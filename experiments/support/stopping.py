"""Ctrl-C and SIGTERM: answered in words at once, obeyed when nothing is lost by it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AT_START = "stopped at once; nothing is lost"
_ONCE_MORE = "once more to stop at once"


class Stopped(Exception):
    """A run was asked to stop, and did where it can go on."""

    def __init__(self, number: int, where: str) -> None:
        """Keeps the signal's number, for the exit status.

        Args:
            number: of the signal.
            where: what is done and saved.
        """
        super().__init__(f"stopped by {signal.Signals(number).name}: {where}")
        self.status = 128 + number


def _exit(number: int, text: str) -> NoReturn:
    os.write(2, f"{text}\n".encode())  # whatever else may be printing just now
    os._exit(128 + number)


def exit_at_once() -> None:
    """Ends the process by words and status from now on, while there is nothing to save.

    An exception would not do: raised while modules are imported, it can be swallowed.
    """

    def handle(number: int, frame: object) -> None:
        del frame
        _exit(number, _AT_START)

    for number in _SIGNALS:
        signal.signal(number, handle)


def exit_cleanly() -> None:
    """Ends the process by ``SystemExit`` from now on, by a second signal at once."""
    received = 0

    def handle(number: int, frame: object) -> None:
        del frame
        nonlocal received
        if received:
            _exit(number, "stopped at once")
        received = number
        os.write(2, f"stopping; {_ONCE_MORE}\n".encode())
        raise SystemExit(128 + number)

    for number in _SIGNALS:
        signal.signal(number, handle)


class Requests:
    """Hears signals: the first is a request, which a run looks for, the second the end.

    Attributes:
        number: of the first signal, 0 if none has come.
        answer: what the person is told when it comes.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Begins before anything is trained.

        Args:
            tell: shows a person a sentence, in the middle of whatever goes on.
        """
        self.number = 0
        self.answer = "stopping before the first task, when this step is done"
        self._tell = tell

    def __call__(self, number: int, frame: object) -> None:
        """Handles a signal."""
        del frame
        if self.number:
            _exit(
                number,
                "stopped at once; the same command goes on from the latest checkpoint",
            )
        self.number = number
        text = f"{self.answer}; {_ONCE_MORE}"
        try:
            self._tell(text)
        except RuntimeError:  # it came in the middle of a line
            os.write(2, f"{text}\n".encode())

    @contextlib.contextmanager
    def answering(self, answer: str) -> Iterator[None]:
        """Tells something else while this is open."""
        before, self.answer = self.answer, answer
        try:
            yield
        finally:
            self.answer = before

    def check(self, where: str) -> None:
        """Stops here if a signal has come.

        Args:
            where: what is done and saved.

        Raises:
            Stopped: one has.
        """
        if self.number:
            raise Stopped(self.number, where)


@contextlib.contextmanager
def requests(tell: Callable[[str], None]) -> Iterator[Requests]:
    """Hears Ctrl-C and SIGTERM until it is closed.

    Args:
        tell: as in ``Requests``.

    Yields:
        What has been asked for. Inside another one it is that one; outside of the main
        thread, where Python takes no signals, nothing is ever asked for.
    """
    outer = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        yield Requests(tell)
        return
    if isinstance(outer, Requests):
        yield outer
        return
    own = Requests(tell)
    before = {number: signal.signal(number, own) for number in _SIGNALS}
    try:
        yield own
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
