"""Ctrl-C on the command line: one line and exit status 130, at any moment."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

STATUS = 130
"""What a shell makes of a program that an interrupt ended: 128 + SIGINT."""


class Commands(TyperGroup):
    """A command line that says that it was interrupted; Typer's own leaves without a word.

    A command that has more to say, such as how to go on, catches KeyboardInterrupt itself.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(_said(str(ctx.info_name)), err=True)
            raise typer.Exit(STATUS) from None


def leave_when_interrupted(program: str) -> None:
    """From now on an interrupt ends a process that imports something at once, and is KeyboardInterrupt elsewhere.

    Libraries do not survive an exception at any line of what they do when they are imported: torch ends in an abort
    of C++, numpy in an endless recursion. Nothing is lost: whatever runs here may be killed at any moment.
    """
    line = f"{_said(program)}\n".encode()

    def stop(number: int, frame: FrameType | None) -> None:
        if _imports(frame):
            os.write(2, line)
            os._exit(STATUS)
        raise KeyboardInterrupt

    # Who ignores interrupts, as a shell's background job does, goes on to do so.
    of_main = threading.current_thread() is threading.main_thread()
    if of_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)


def _said(program: str) -> str:
    return f"{program}: interrupted"


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
