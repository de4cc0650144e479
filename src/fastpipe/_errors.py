"""The pipe's errors, and every text that both twins raise: written once, so they cannot drift apart.

PipeError
├ PipeClosedError    you closed this end, then read from it: stop using it
├ PipeBrokenError    the peer aborted, or is gone while you still write: also a ConnectionResetError
└ PipeBusyError      two readers at once: a protocol is set, so the bytes are its own
"""

from __future__ import annotations

WRITE_AFTER_EOF = "Cannot call write() after write_eof()"  # asyncio's own words
WRONG_THREAD = "this pipe belongs to another thread: reach it through its loop's call_soon_threadsafe()"
OTHER_LOOP = "this pipe belongs to another event loop"
MADE_ELSEWHERE = "a PipeEnd is made by create_pipe()"
LOOP_CLOSED = "Event loop is closed"  # asyncio's own words
READ_CLOSED = "this end of the pipe was closed"
READ_BUSY = "a protocol is set on this end: it takes the bytes"
PEER_ABORTED = "the other end of the pipe aborted"
PEER_GONE = "the other end of the pipe is closed: what was written to it is lost"
EMPTY_BUFFER = "get_buffer() returned an empty buffer"  # asyncio's own words
NOT_CONTIGUOUS = "buffer must be C-contiguous"


class PipeError(Exception):
    """Base of what a pipe raises. Misuse that asyncio answers with RuntimeError, TypeError or ValueError stays that."""


class PipeClosedError(PipeError):
    """You closed or lost this end, then read from it by hand."""


class PipeBrokenError(PipeError, ConnectionResetError):
    """The peer broke the pipe: it aborted, its protocol raised, or it had closed while this end still wrote."""


class PipeBusyError(PipeError):
    """A read by hand while a protocol is set: only one of them can take the bytes."""


def not_bytes_like(data: object) -> TypeError:
    """What `write` raises for an object without a buffer; asyncio's own words."""
    return TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")


def not_writable(buffer: object) -> TypeError:
    """What `readinto` raises for an object that it can't write into."""
    return TypeError(f"buffer must be a writable bytes-like object, not {type(buffer).__name__!r}")


def past_the_end(n: object, there: int) -> ValueError:
    """What `consume` raises for a count that isn't there. there: bytes waiting."""
    return ValueError(f"cannot consume {n} bytes: {there} are there")
