"""Two clusters in one browser: the cookies and service workers of one never reach the other."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from .browser_processes import APPS, HubProcess, Start
from .browser_visit import Open

ATTRIBUTES = {
    "bare": "",
    "root": "Path=/",
    "deep": "Path=/c2/",
    "strict": "Path=/; SameSite=Strict; Secure; HttpOnly",
    "wide": "Path=/; Domain={domain}",
    "dotted": "Path=/; Domain=.{domain}",
    "other": "Path=/; Domain=c2.{domain}",
    "parent": "Path=/; Domain=example.com",
    "__Secure-one": "Path=/; Secure",
    "__Host-one": "Path=/; Secure",
}
KEPT = {
    "host": {"bare", "root", "strict", "__Secure-one", "__Host-one"},
    "path": {"bare", "root", "strict", "__Secure-one"},
}
"""The cookies that surely reach their own cluster."""


@pytest.fixture
def both(start: Start) -> tuple[str, str]:
    """The URLs of two clusters with one shop each."""
    first = start(APPS / "flask", "c1", example="test_flask")
    second = start(APPS / "flask", "c2", example="test_flask", SHOP_KEY="another")
    return first.url, second.url


def test_cookies_stay_with_their_cluster(both: tuple[str, str], visit: Open, hub: HubProcess) -> None:
    first, second = both
    seen = visit(first)
    page = seen.open()
    page.click("button")
    for name, attributes in ATTRIBUTES.items():
        seen.open(f"set?name={name}&attributes={quote(attributes.format(domain=hub.domain))}")
    seen.open("cookies")
    own = set(page.evaluate("JSON.parse(document.body.innerText)"))
    assert own >= KEPT[hub.mode] | {"session"}
    seen.check()
    page.goto(f"{second}cookies")
    assert page.evaluate("JSON.parse(document.body.innerText)") == []
    page.goto(second)
    page.click("button")  # its own session begins at 0, beside the other
    assert page.inner_text("#count") == "1 in the basket"
    seen.open()
    assert page.inner_text("#count") == "1 in the basket"


def test_scripts_read_no_other_origin(both: tuple[str, str], visit: Open, hub: HubProcess) -> None:
    """By host, the browser itself separates the pages of clusters. By path they are one origin."""
    first, second = both
    seen = visit(first)
    page = seen.open()
    script = "async url => { try { return (await fetch(url)).status } catch (error) { return error.name } }"
    assert page.evaluate(script, f"{second}cookies") == ("TypeError" if hub.mode == "host" else 200)


def test_service_worker_serves_its_own_cluster_alone(both: tuple[str, str], visit: Open, hub: HubProcess) -> None:
    """The app allows its worker the scope "/". By path, that is every cluster."""
    first, _ = both
    seen = visit(first)
    page = seen.open()
    script = "scope => navigator.serviceWorker.register('worker.js', { scope }).then(r => r.scope, e => e.name)"
    widest = "https://c1.tunnel.example.com/" if hub.mode == "host" else "SecurityError"
    assert page.evaluate(script, "/") == widest
    assert page.evaluate(script, "./") == first
