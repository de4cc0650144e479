"""Reads the plain parts of a head without llhttp: lines whose form and meaning leave no doubt.

llhttp judges everything else. This parser accepts nothing that llhttp would reject, and both read the same meaning.
Tests give the same heads to both parsers, in both twins. Each function looks at every byte once.
The readers of `heads` take `fast`, whose default is USES_FAST_PARSER. The Python twin uses llhttp at once.

    request line   METHOD SP target SP HTTP/1.[01]    a common method, a path without `%`, `#`, a backslash and `/.`
    status line    HTTP/1.1 SP ddd SP reason          200 to 599, a reason in visible ASCII
    field          name ":" OWS value OWS CRLF        a token, and at least one byte of value, none of them a control
    Content-Length once, 1 to 19 digits; or
    Transfer-Encoding once, `chunked`; never both
"""

from __future__ import annotations

from .headers import SPECIAL, WITH_URLS, Fields

__all__ = [
    "PLAIN_METHODS",
    "USES_FAST_PARSER",
    "HeaderBlock",
    "plain_host_end",
    "plain_request_line",
    "plain_status_line",
]

USES_FAST_PARSER = not __file__.endswith(".py")
"""Whether this module is compiled. A request head of 336 bytes takes 7 µs with C loops and 14 µs by llhttp. The same
loops in Python take 57 µs, and llhttp 23 µs there. tests/proxy/test_head_twins.py takes both paths in both twins."""

TAB, LF, CR, SPACE, DOT, SLASH, ZERO, COLON = b"\t\n\r ./0:"
PLAIN_METHODS = {b"GET": "GET", b"POST": "POST", b"PUT": "PUT", b"DELETE": "DELETE", b"PATCH": "PATCH", b"HEAD": "HEAD"}

NAME, VALUE, BLANK, PATH, HOST, REASON = 1, 2, 4, 8, 16, 32


def _kind(byte: int) -> int:
    """The places where a byte is allowed, as bits."""
    sign = bytes([byte])
    is_alphanumeric = sign.isalnum() and byte < 0x80
    return (
        NAME * (is_alphanumeric or sign in b"!#$%&'*+-.^_`|~")  # RFC 9110, section 5.6.2
        | VALUE * (byte == TAB or (byte >= SPACE and byte != 0x7F))
        | BLANK * (sign in b" \t")
        | PATH * (SPACE < byte < 0x7F and sign not in b"#\\%")
        | HOST * (is_alphanumeric or sign in b"._~-")
        | REASON * (SPACE <= byte < 0x7F)
    )


KINDS = bytes(map(_kind, range(256)))
# Indexed by a name's length and the low bits of its first letter: whether the name may need a look. Most do not.
NOTED = SPECIAL | WITH_URLS
LONGEST_SPECIAL = max(map(len, NOTED))
MAYBE_SPECIAL = bytes(
    any(len(name) == length and name[0] & 31 == letter for name in NOTED)
    for length in range(LONGEST_SPECIAL + 1)
    for letter in range(32)
)


def plain_request_line(head: bytes, target_bytes: int) -> int:
    """Return where a plain request line's method ends, or 0 if the line is not plain.

    The target begins one byte further, and ends 9 bytes before the first CRLF.

    Args:
        head: ends with a CRLF.
        target_bytes: the longest target allowed.
    """
    at = 0
    text = head
    kinds = KINDS
    while kinds[text[at]] & HOST:
        at += 1
    method_end = at
    if text[at] != SPACE or text[at + 1] != SLASH:
        return 0
    at += 1
    while kinds[text[at]] & PATH:
        if text[at] == SLASH and text[at + 1] == DOT:
            return 0
        at += 1
    if at - method_end - 1 > target_bytes or at + 11 > len(head) or text[at : at + 8] != b" HTTP/1.":
        return 0
    if not ZERO <= text[at + 8] <= ZERO + 1 or text[at + 9] != CR or text[at + 10] != LF:
        return 0
    return method_end


def plain_status_line(head: bytes) -> int:
    """Return where a plain status line ends, before its CRLF, or 0 if it is not plain. Its status is bytes 9 to 12."""
    if not head.startswith(b"HTTP/1.1 "):
        return 0
    text = head
    kinds = KINDS
    if not (ZERO + 2 <= text[9] <= ZERO + 5 and ZERO <= text[10] <= ZERO + 9 and ZERO <= text[11] <= ZERO + 9):
        return 0
    if text[12] != SPACE:
        return 0
    at = 13
    while kinds[text[at]] & REASON:
        at += 1
    return at if text[at] == CR and text[at + 1] == LF else 0


def plain_host_end(host: bytes) -> int:
    """Where a plain host name or IPv4 address ends in a `Host` value: at its end or a colon. 0 where it isn't plain."""
    at = 0
    size = len(host)
    text = host
    kinds = KINDS
    while at < size and kinds[text[at]] & HOST:
        at += 1
    return at if at == size or text[at] == COLON else 0


class HeaderBlock:
    """The fields of one head. Made for each head.

    Attributes:
        fields: end-to-end fields, in order.
        special: lower-case name → values in order.
        block: instead of `fields`, if requested: the end-to-end lines as they are sent on, after the head's first line.
        count: the number of all fields.
        has_urls: one of the end-to-end fields is in WITH_URLS.
    """

    __slots__ = ("block", "count", "fields", "has_urls", "special")

    def __init__(self) -> None:
        self.fields: Fields = []
        self.special: dict[bytes, list[bytes]] = {}
        self.block = b""
        self.count = 0
        self.has_urls = False

    def add(self, name: bytes, value: bytes) -> None:
        """Take a field that was read otherwise."""
        self.count += 1
        lower = name.lower()
        if lower in SPECIAL:
            self._add_special(lower, value)
        else:
            self.fields.append((name, value))
            if lower in WITH_URLS:
                self.has_urls = True

    def read(self, head: bytes, start: int, as_block: bool) -> bool:
        """Read the lines from `start` to the empty line, which is the head's end. as_block: `block` is wanted, and the
        line before `start` was checked.

        Returns False where they aren't plain: nothing that was read counts then.
        """
        size = len(head)
        text = head
        kinds = KINDS
        maybe_special = MAYBE_SPECIAL
        fields = self.fields
        runs: list[bytes] = []  # runs of lines that are sent on unchanged
        run = 0
        at = start
        count = 0
        while at < size - 2:
            begin = at
            while kinds[text[at]] & NAME:
                at += 1
            name_end = at
            if name_end == begin or text[at] != COLON:
                return False
            at += 1
            while kinds[text[at]] & BLANK:
                at += 1
            value = at
            while kinds[text[at]] & VALUE:
                at += 1
            end = at
            if text[at] != CR or text[at + 1] != LF:
                return False
            at += 2
            while end > value and kinds[text[end - 1]] & BLANK:
                end -= 1
            if end == value:
                return False
            count += 1
            length = name_end - begin
            if length <= LONGEST_SPECIAL and maybe_special[length * 32 + (text[begin] & 31)]:
                lower = text[begin:name_end].lower()
                if lower in SPECIAL:
                    self._add_special(lower, text[value:end])
                    if as_block:
                        if run < begin:
                            runs.append(text[run:begin])
                        run = at
                    continue
                if lower in WITH_URLS:
                    self.has_urls = True
            if not as_block:
                fields.append((text[begin:name_end], text[value:end]))
            elif value != name_end + 2 or end != at - 2 or text[value - 1] != SPACE:  # it isn't written as we write
                if run < begin:
                    runs.append(text[run:begin])
                runs.append(text[begin:name_end] + b": " + text[value:end] + b"\r\n")
                run = at
        if at != size - 2 or text[at] != CR or text[at + 1] != LF:
            return False
        if as_block:
            if run < at:
                runs.append(text[run:at])
            self.block = runs[0] if len(runs) == 1 else b"".join(runs)
        self.count = count
        return self._is_framing_plain()

    def _add_special(self, lower: bytes, value: bytes) -> None:
        values = self.special.get(lower)
        if values is None:
            self.special[lower] = [value]
        else:
            values.append(value)

    def _is_framing_plain(self) -> bool:
        """Return whether the lines leave no doubt about the body's length."""
        special = self.special
        if not special:
            return True
        lengths = special.get(b"content-length")
        codings = special.get(b"transfer-encoding")
        if codings is not None:
            return lengths is None and len(codings) == 1 and codings[0] == b"chunked"
        return lengths is None or (len(lengths) == 1 and len(lengths[0]) < 20 and lengths[0].isdigit())
