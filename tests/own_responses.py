"""Reads the text of a response that the hub or the agent made itself."""

from __future__ import annotations

import re
from typing import AnyStr

__all__ = ["reason_of"]


def reason_of(text: AnyStr) -> AnyStr:
    """Return the reason with its line end. It must be followed by the request's id, and nothing else."""
    is_text = isinstance(text, str)
    body = text.encode() if isinstance(text, str) else text
    match = re.fullmatch(rb"(.*\n)request id: [A-Za-z0-9._~:/+=@-]{1,128}\n", body, re.DOTALL)
    assert match is not None, body
    return match[1].decode() if is_text else match[1]  # type: ignore[return-value]  # of the argument's type
