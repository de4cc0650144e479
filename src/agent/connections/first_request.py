"""Gives the first request from a base hub the framing that only its packet's border tells.

A base hub sends the first request of a connection in exactly one packet, re-written: of a chunked upload it drops the
coding and writes the bare bytes (wire.md, "first request"). Read as a plain byte stream, such a body would be a second
request, chosen by whoever uploaded it. So before the bytes reach the carrier, where borders vanish:

- where the head has neither Content-Length nor Transfer-Encoding and bytes follow its blank line, those bytes are its
  body, and the head is given their number as Content-Length (no upgrade follows a body there: the proxy answers 400 or
  drops the Upgrade);
- `Expect: 100-continue`, which the hub has answered already, is dropped.

Nothing else is touched, and nothing is judged: what is malformed goes on as it is, for the proxy to refuse. In doubt a
length is added, never left out: a field counts as present only where a line begins with its name and a colon, so a
spelling that the proxy might not recognise can't hide a body from it; were it recognised after all, two framings are
a 400.
"""

from __future__ import annotations

import re

__all__ = ["HEAD_WINDOW_BYTES", "reframe"]

HEAD_WINDOW_BYTES = 256 * 1024
"""Where the blank line must lie to be looked for: well past the 64 KiB at which the proxy refuses a head."""

_JOINED_BYTES = 64 * 1024  # up to here one copy is cheaper than a second packet through the carrier

# Up to and without the line break that ends it; a line that a folded one continues is another value (RFC 9112, 5.2).
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n(?![ \t]))", re.IGNORECASE)


def reframe(packet: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    """The bytes to hand on in place of a connection's first non-empty packet from a base hub.

    packet: bytes-like, 1-D, C-contiguous, n >= 0 bytes. Returns one or two buffers, to be read one after the other; the
    same object where nothing changes. A long body is a view of the packet, never a copy. Source: wire.md, "first
    request"; RFC 9112, sections 2.2 (empty lines before a request) and 6.3 (a request's length).
    """
    window = bytes(packet[:HEAD_WINDOW_BYTES])
    start = len(window) - len(window.lstrip(b"\r\n"))  # empty lines before the request line end no head
    end = window.find(b"\r\n\r\n", start)
    if end < 0:
        return (packet,)
    head = window[start : end + 2].lower()
    body_bytes = len(packet) - end - 4
    unframed = body_bytes > 0 and b"\r\ncontent-length:" not in head and b"\r\ntransfer-encoding:" not in head
    answered = 0
    rewritten = window[start : end + 4]
    if b"\r\nexpect:" in head:
        rewritten, answered = _EXPECT.subn(b"", rewritten)
    if not unframed and not answered:
        return (packet,)
    length = b"Content-Length: %d\r\n" % body_bytes if unframed else b""
    rewritten = window[:start] + rewritten[:-2] + length + b"\r\n"
    if body_bytes <= _JOINED_BYTES:
        return (rewritten + bytes(packet[end + 4 :]),)
    return (rewritten, memoryview(packet)[end + 4 :])
