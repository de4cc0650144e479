"""The page at `/` with a link to each cluster, in HTML or in plain text."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable

from ..errors import Responded
from ..messages import RequestHead

__all__ = ["Index", "MaySee", "prefers_text"]

MaySee = Callable[[RequestHead, str], bool]
"""Whether the user of this request may see that the cluster of this name exists."""

FIELDS = [
    (b"Content-Security-Policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"Cache-Control", b"no-store"),
    (b"Vary", b"Accept"),
]
HTML = (b"Content-Type", b"text/html; charset=utf-8")
TEXT = (b"Content-Type", b"text/plain; charset=utf-8")

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Clusters</title>
<style>body {{ font: 1rem/1.6 system-ui, sans-serif; margin: 2rem auto; max-width: 40rem; padding: 0 1rem }}</style>
<h1>Clusters</h1>
{list}
</html>"""
EMPTY = "No agent is connected."
MOST_RANGES = 64
"""Elements of `Accept` that are read. A browser sends fewer than 10."""


class Index:
    """Responds to requests for `/`.

    clusters: returns the names of the clusters with an agent.
    may_see: decides which of them the page has.
    """

    def __init__(self, clusters: Callable[[], Iterable[str]], may_see: MaySee) -> None:
        self._clusters = clusters
        self._may_see = may_see

    def respond(self, request: RequestHead) -> None:
        """Raise Responded with the page."""
        names = sorted(name for name in self._clusters() if self._may_see(request, name))
        accepted = b",".join(value for name, value in request.headers if name.lower() == b"accept")
        if prefers_text(accepted):
            raise Responded("\n".join(f"/{name}/" for name in names) or EMPTY, [TEXT, *FIELDS])
        # The links are relative, so they work behind a proxy that puts a prefix before the hub.
        items = "\n".join(f'<li><a href="{(name := html.escape(each))}/">{name}</a>' for each in names)
        page = PAGE.format(list=f"<ul>\n{items}\n</ul>" if names else f"<p>{EMPTY}")
        raise Responded(page, [HTML, *FIELDS])


def prefers_text(accept: bytes) -> bool:
    """Whether `Accept` has a higher weight for text/plain than for text/html (RFC 9110, section 12.5.1)."""
    weights = {b"text/plain": 0.0, b"text/html": 0.0}
    found = dict.fromkeys(weights, -1)  # how specific the range was that gave the weight
    for element in accept.split(b",")[:MOST_RANGES]:
        range_, *parameters = (part.strip().lower() for part in element.split(b";"))
        weight = _weight(parameters)
        for name in weights:
            ranges = (b"*/*", b"text/*", name)
            if range_ in ranges and ranges.index(range_) > found[name]:
                found[name], weights[name] = ranges.index(range_), weight
    return weights[b"text/plain"] > weights[b"text/html"]


def _weight(parameters: Iterable[bytes]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"q":
            try:
                weight = float(value.strip())
            except ValueError:
                return 0.0
            return weight if 0.0 <= weight <= 1.0 else 0.0  # not for NaN, either
    return 1.0
