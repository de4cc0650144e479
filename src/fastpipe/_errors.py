"""The pipe's errors, and every text that both twins raise: written once, so they cannot drift apart.

PipeError
├ PipeClosedError    you closed this end, then read from it: stop using it
├ PipeBrokenError    the peer aborted, or is gone while you still write: also a ConnectionResetError
└ PipeBusyError      two readers at once: a protocol is set, so the bytes are its own
"""

from __future__ import annotations

WRITE_AFTER_EOF = "Cannot call write() after write_eof()"  # asyncio's own words
WRONG_THREAD = "this pipe belongs to another thread, so use its loop's call_soon_threadsafe()"
OTHER_LOOP = "this pipe belongs to another event loop"
MADE_ELSEWHERE = "a PipeEnd is made by create_pipe()"
LOOP_CLOSED = "Event loop is closed"  # asyncio's own words
READ_CLOSED = "this end of the pipe was closed"
READ_BUSY = "a protocol is set on this end and takes the bytes"
PEER_ABORTED = "the other end of the pipe aborted"
PEER_GONE = "the other end of the pipe is closed, and bytes written to it are lost"
EMPTY_BUFFER = "get_buffer() returned an empty buffer"  # asyncio's own words
NOT_CONTIGUOUS = "buffer must be C-contiguous"


class PipeError(Exception):
    """The base of a pipe's errors. Misuse raises RuntimeError, TypeError or ValueError, as in asyncio."""


class PipeClosedError(PipeError):
    """You closed or lost this end, then read from it by hand."""


class PipeBrokenError(PipeError, ConnectionResetError):
    """The peer broke the pipe: it aborted, its protocol raised, or it had closed while this end still wrote."""


class PipeBusyError(PipeError):
    """A read by hand while a protocol is set. Only one of them can take the bytes."""


def not_bytes_like(data: object) -> TypeError:
    """The error of `write` for an object without a buffer, in asyncio's own words."""
    return TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")


def not_writable(buffer: object) -> TypeError:
    """The error of `readinto` for a buffer that is not writable."""
    return TypeError(f"buffer must be a writable bytes-like object, not {type(buffer).__name__!r}")


def past_the_end(n: object, there: int) -> ValueError:
    """The error of `consume` for too large a count. there: bytes waiting."""
    return ValueError(f"cannot consume {n} bytes, {there} are waiting")
