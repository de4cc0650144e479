"""Adds the framing that the first request from a base hub lacks. Only the border of its packet shows that framing.

A base hub rewrites the first request of a connection and sends it in exactly one packet. It drops the coding of a
chunked upload and writes the bare bytes (wire.md, "first request"). In a plain byte stream such a body would be read as
a second request, chosen by the uploader. The borders vanish in the carrier, so this module changes two things before:

- If the head has neither Content-Length nor Transfer-Encoding, the bytes after its blank line are its body. The head
  gets their number as Content-Length. No upgrade follows a body here. The proxy returns 400 or drops the Upgrade.
- It drops `Expect: 100-continue`, since the hub has already sent the 100.

Nothing else is changed or judged. The proxy gets malformed requests as they are and rejects them. If in doubt, the
module adds a length. A field counts as present only if a line begins with its name and a colon. So a spelling that the
proxy might not recognise can't hide a body. If the proxy recognises it, two framings are a 400.
"""

from __future__ import annotations

import re

__all__ = ["HEAD_WINDOW_BYTES", "reframe"]

HEAD_WINDOW_BYTES = 256 * 1024
"""The blank line is searched for up to here, well past the 64 KiB at which the proxy rejects a head."""

_JOINED_BYTES = 64 * 1024  # up to here one copy is cheaper than a second packet through the carrier

# The match excludes the line break at the end. A line that a folded line continues has another value (RFC 9112, 5.2).
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n(?![ \t]))", re.IGNORECASE)


def reframe(packet: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    """Return the bytes that replace a connection's first non-empty packet from a base hub.

    The result is one or two buffers, to be read one after the other. If nothing changes, it is the same object. A long
    body is a view of the packet, never a copy. Sources: wire.md, "first request", and RFC 9112, sections 2.2 (empty
    lines before a request) and 6.3 (a request's length).

    packet: bytes-like, 1-D, C-contiguous, n >= 0 bytes.
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
