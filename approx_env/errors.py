"""The errors that end a command without a traceback, and how a command ends: by them, by a signal, by a closed pipe."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

# Signals that end a command. Its status is then 128 and the signal's number, as a shell has it.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
AGAIN_SECONDS = 0.1  # until a signal that was dropped comes again
NO_READER = 128 + 13  # the status of a tool that SIGPIPE ends


class InputError(ValueError):
    """Something that a person gave cannot be used.

    Args:
        problems: one sentence, or several that are reported together; each says what must hold, what came and how
            to fix it, and names the flag or the file.
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))


class Failure(RuntimeError):
    """Something outside of this program has failed. The text says what, and what to do."""


class Ended(KeyboardInterrupt):
    """A signal asks this process to end: what Ctrl-C raises, for every signal in `ENDING`."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def exit_status(command: Callable[[], int | None], received: list[int] | None = None) -> int:
    """Runs a command and returns its exit status. Signals that came are put into `received`.

    That is 0 or what the command returns; 1 after a `Failure` and 2 for bad input, both told on stderr; 130 after
    Ctrl-C, 143 after SIGTERM, 129 after SIGHUP; and 141, without a word, when nobody reads stdout any more.
    """
    _open_closed_streams()
    received = [] if received is None else received
    unread: list[bool] = []
    try:
        with _heard(received), _threads_that_write(unread):
            status = command()
            sys.stdout.flush()
            return status or 0
    except InputError as error:
        _tell(f"error: {problem}" for problem in error.problems)
        return 2
    except Failure as error:
        _tell([f"error: {error}"])
        return 1
    except BrokenPipeError:
        if not _unread():
            raise  # it is another pipe
        unread.append(True)
    except OSError as error:
        if not _full():
            raise  # it is another file
        _tell([f"error: stdout cannot be written ({error}): send it to a file, a pipe or a terminal"])
        _write_nowhere()
        return 2
    except KeyboardInterrupt:
        if not unread:
            _tell(["interrupted"])
            return 128 + (received[0] if received else signal.SIGINT)
    except SystemExit:  # of --help, whose text may not have been written yet
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        if not _unread():
            raise
    _write_nowhere()
    return NO_READER


def run_module(name: str) -> int:
    """Runs the `main` of a module as a command. Signals are heard while the module is loaded, which takes seconds."""
    received: list[int] = []

    def command() -> int | None:
        module = importlib.import_module(name)
        if received:  # a library that was being loaded has caught what it raised
            raise Ended(received[0])
        return module.main()

    return exit_status(command, received)


@contextlib.contextmanager
def _heard(received: list[int]) -> Iterator[None]:
    """Each signal of `ENDING` raises `Ended` in the block; a repeated one does not disturb what the first has begun.

    Python drops what is raised while an object is destroyed, as Ray's are all the time. The signal then comes again.
    """

    def end(number: int, frame) -> None:
        if number not in received or number == signal.SIGINT:  # whoever presses Ctrl-C again does not want to wait
            received.append(number)
            raise Ended(number)

    def again(dropped) -> None:
        if not isinstance(dropped.exc_value, Ended):
            hook(dropped)
            return
        received.remove(dropped.exc_value.number)
        later = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), dropped.exc_value.number))
        later.daemon = True
        later.start()

    before, hook = {}, sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        # What this process was started to ignore, as by nohup, it goes on ignoring.
        before = {each: signal.getsignal(each) for each in ENDING if signal.getsignal(each) is not signal.SIG_IGN}
        sys.unraisablehook = again
    for each in before:
        signal.signal(each, end)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """A signal of `ENDING` that comes in the block is heard after it, so that nothing is left half begun or half ended.

    Whoever presses Ctrl-C again in the block does not want to wait.
    """
    came: list[int] = []

    def hold(number: int, frame) -> None:
        if number == signal.SIGINT and number in came:
            came.clear()
            before[number](number, frame)
        came.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {each: handler for each in ENDING if callable(handler := signal.getsignal(each))}
    for each in before:
        signal.signal(each, hold)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in came[:1]:
            signal.raise_signal(number)


@contextlib.contextmanager
def _threads_that_write(unread: list[bool]) -> Iterator[None]:
    """A thread that finds that nobody reads stdout ends the command, not only itself."""
    before = threading.excepthook

    def hook(arguments) -> None:
        if issubclass(arguments.exc_type, BrokenPipeError) and _unread():
            unread.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _open_closed_streams() -> None:
    """Output that was closed before the start goes nowhere, instead of into the file that is opened next."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _unread() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such function on Windows; a stdout that is no file
        return False


def _full() -> bool:
    """Whether stdout takes nothing more, as a file on a full disk."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except (AttributeError, OSError, ValueError):
        return True
    return False


def _write_nowhere() -> None:
    """What is still to be written to stdout is dropped, so that Python does not complain at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(lines: Iterable[str]) -> None:
    text = "\n".join(lines).encode(errors="backslashreplace").decode()  # names of files need not be UTF-8
    text = re.sub(r"\S{1000,}", lambda word: f"{word[0][:100]}…{word[0][-100:]}", text)  # an error is to be read
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)
