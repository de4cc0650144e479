"""The page at `/`: its links, its two forms, and its fields."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from agent.errors import Responded
from agent.hub.index import Index, prefers_text
from agent.messages import RequestHead


def page(names: list[str], accept: str | None = None, hidden: str = "") -> Responded:
    headers = [] if accept is None else [(b"Accept", accept.encode())]
    index = Index(lambda: names, lambda request, name: name != hidden)
    with pytest.raises(Responded) as caught:
        index.respond(RequestHead("GET", b"/", "1.1", headers))
    return caught.value


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str | None] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value for name, value in attrs if name == "href"]


def test_the_page_links_to_each_cluster_that_the_user_may_see() -> None:
    found = page(["c2", "c1", "secret"], hidden="secret")
    assert Links(found.body).found == ["c1/", "c2/"]
    assert "secret" not in found.body


def test_a_browser_runs_nothing_on_the_page_and_keeps_no_copy() -> None:
    fields = dict(page(["c1"]).fields)
    assert fields[b"Content-Type"] == b"text/html; charset=utf-8"
    assert fields[b"Content-Security-Policy"] == b"default-src 'none'; style-src 'unsafe-inline'"
    assert fields[b"Cache-Control"] == b"no-store"


def test_names_are_escaped() -> None:
    found = Links(page(['"><script>alert(1)</script>&amp;']).body)
    assert "script" not in found.tags
    assert found.found == ['"><script>alert(1)</script>&amp;/']


@pytest.mark.parametrize("accept", [None, "text/plain"])
def test_without_a_cluster_the_page_says_so(accept: str | None) -> None:
    assert "No agent is connected." in page([], accept).body


def test_plain_text_has_one_path_in_each_line() -> None:
    found = page(["c2", "c1"], "text/plain")
    assert found.body == "/c1/\n/c2/"
    assert dict(found.fields)[b"Content-Type"] == b"text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "is_text"),
    [
        (b"", False),
        (b"*/*", False),
        (b"text/*", False),
        (b"text/plain", True),
        (b"TEXT/Plain ; Q=0.1", True),
        (b"text/html,application/xhtml+xml,*/*;q=0.8", False),
        (b"text/plain, text/html;q=0.9", True),
        (b"text/plain;q=0.5, text/html", False),
        (b"text/plain;q=0.5, */*;q=0.1", True),
        (b"text/html;q=0, */*", True),
        (b"*/*, text/plain;q=0", False),
        (b"text/plain;q=2", False),
        (b"text/plain;q=nan", False),
        (b"text/plain;q=", False),
        (b"text/plain;q", False),
        (b",;,=;q=1,\xff/\xff", False),
        (b"application/json", False),
    ],
)
def test_text_is_sent_where_it_is_preferred(accept: bytes, is_text: bool) -> None:
    assert prefers_text(accept) is is_text
