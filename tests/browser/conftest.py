"""Real applications behind real agents and hubs, opened by Chromium. `make browser` runs this folder."""

from __future__ import annotations

import base64
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import load_pem_x509_certificate
from playwright.sync_api import Browser, sync_playwright

from ..web_apps_page import Mode, example_of
from .browser_processes import Credentials, HubProcess, Running, Start, program
from .browser_visit import Open, Visit

FLAGS = (
    "--no-sandbox",  # root has no sandbox
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-background-networking",  # Chromium's own requests
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    made = authority.issue_cert("hub.example.com", "tunnel.example.com", "*.tunnel.example.com")
    key = load_pem_x509_certificate(made.cert_chain_pems[0].bytes()).public_key()
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = base64.b64encode(hashlib.sha256(spki).digest()).decode()
    found = Credentials(directory / "ca.pem", directory / "hub.pem", digest)
    authority.cert_pem.write_to_path(found.authority)
    made.private_key_and_cert_chain_pem.write_to_path(found.hub)
    found.hub.chmod(0o600)
    return found


@pytest.fixture(scope="session")
def hubs(tmp_path_factory: pytest.TempPathFactory, credentials: Credentials) -> Iterator[dict[Mode, HubProcess]]:
    """Both hubs. They share a certificate."""
    directory = tmp_path_factory.mktemp("hubs")
    started: dict[Mode, HubProcess] = {}
    try:
        started["host"] = HubProcess(directory, "host", credentials)
        started["path"] = HubProcess(directory, "path", credentials)
        yield started
    finally:
        for hub in started.values():
            hub.close()


@pytest.fixture(params=["host", "path"])
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


@pytest.fixture
def hub(hubs: dict[Mode, HubProcess], mode: Mode) -> HubProcess:
    return hubs[mode]


@pytest.fixture
def start(hub: HubProcess, request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Start]:
    """start(folder): the page's example of this test, with a copy of the application's files. Options as of Running."""
    running: list[Running] = []

    def run(folder: pathlib.Path, cluster: str = "c1", example: str = "", **options: Any) -> Running:
        lines = example_of(example or request.node.originalname, hub.mode)
        started = Running(hub, lines, folder, tmp_path / cluster, cluster, **options)
        running.append(started)
        return started

    yield run
    for started in reversed(running):
        started.close()
        print(started.logs)  # pytest shows it where the test fails
        assert not started.warnings()


@pytest.fixture(scope="session")
def chromium(hubs: dict[Mode, HubProcess], credentials: Credentials) -> Iterator[Browser]:
    """Debian's Chromium. It finds both hubs by their public names at port 443, and trusts their one certificate."""
    rules = (
        f"MAP *.tunnel.example.com 127.0.0.1:{hubs['host'].http_port}",
        f"MAP hub.example.com 127.0.0.1:{hubs['path'].http_port}",
        "MAP * ^NOTFOUND",
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program("chromium"),
            args=[
                *FLAGS,
                f"--host-resolver-rules={', '.join(rules)}",
                f"--ignore-certificate-errors-spki-list={credentials.key_digest}",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Open]:
    """visit(url), closed after the test."""
    visits: list[Visit] = []

    def make(url: str) -> Visit:
        visits.append(Visit(chromium, url))
        return visits[-1]

    yield make
    for made in visits:
        made.close()
