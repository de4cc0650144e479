"""Real web applications behind hub and agent, by host and by path, each with the lines of docs/web-apps.md.

Each test drives the application as a user does. Then it checks that nothing failed and nothing left origin or prefix.
"""

from __future__ import annotations

import pathlib
import shutil
import sqlite3
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from .browser_processes import APPS, ENVIRON, HubProcess, Start, missing, program
from .browser_visit import Open

NODE_MODULES = pathlib.Path(sys.prefix) / "npm" / "node_modules"
"""Where `make browser` installs packages of npm."""
FORWARDED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Proto": "http",
}


def prefix(url: str) -> str:
    """The path of a URL, without the slash at its end."""
    return urlsplit(url).path.rstrip("/")


def replace(path: pathlib.Path, text: str) -> None:
    """Change a file at once, as editors do. A watcher never sees it empty."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def test_fastapi(start: Start, visit: Open) -> None:
    check_fastapi(visit, start(APPS / "fastapi").url)


def test_fastapi_in_the_agent(start: Start, visit: Open) -> None:
    check_fastapi(visit, start(APPS / "fastapi").url)


def check_fastapi(visit: Open, url: str) -> None:
    """The WebSocket, the form, both redirects, the docs page with a call, and the request as the app sees it."""
    seen = visit(url)
    page = seen.open()
    expect(page.locator("#said")).to_have_text("echo hello")
    page.fill("[name=name]", "plum")
    page.click("button")
    assert page.url == f"{url}items/"
    assert "plum" in page.inner_text("body")
    seen.open("items")
    assert page.url == f"{url}items/"
    seen.open("docs")
    page.click("#operations-default-list_items_items__get")
    page.click("text=Try it out")
    page.click("text=Execute")
    expect(page.locator(".live-responses-table .response .response-col_status").first).to_contain_text("200")
    expect(page.locator(".request-url").first).to_contain_text(f"{url}items/")
    found = seen.fetch("me", FORWARDED)
    assert found == {"client": "127.0.0.1", "url": f"{url}me", "root_path": prefix(url)}
    seen.check()
    assert len(seen.sockets) == 1


@pytest.fixture(scope="module")
def django_project(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A project with a database that has one superuser."""
    directory = pathlib.Path(shutil.copytree(APPS / "django", tmp_path_factory.mktemp("django") / "site"))
    for arguments in (["migrate", "--verbosity=0"], ["createsuperuser", "--noinput", "--verbosity=0"]):
        subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=directory,
            check=True,
            env=ENVIRON
            | {
                "DJANGO_SUPERUSER_USERNAME": "ada",
                "DJANGO_SUPERUSER_PASSWORD": "lovelace",
                "DJANGO_SUPERUSER_EMAIL": "a@example.com",
            },
        )
    return directory


def test_django(start: Start, visit: Open, django_project: pathlib.Path, tmp_path: pathlib.Path) -> None:
    running = start(django_project)
    seen = visit(running.url)
    page = seen.open("admin")  # APPEND_SLASH, then the redirect to the login
    assert page.url == f"{running.url}admin/login/?next={prefix(running.url)}/admin/"
    page.fill("#id_username", "ada")
    page.fill("#id_password", "lovelace")
    page.click("[type=submit]")
    assert page.url == f"{running.url}admin/"
    page.click("text=Groups")
    page.click("text=Add group")
    page.fill("#id_name", "readers")
    page.click("[name=_save]")
    expect(page.locator(".messagelist .success")).to_contain_text("readers")
    assert page.url == f"{running.url}admin/auth/group/"
    assert seen.fetch("me/", FORWARDED) == {
        "url": f"{running.url}me/",
        "secure": True,
    }
    page.click("#logout-form button")
    expect(page.locator("#content")).to_contain_text("Thanks")
    seen.check()
    assert any(url.endswith(".css") for url in seen.urls)


def test_flask(start: Start, visit: Open) -> None:
    running = start(APPS / "flask")
    seen = visit(running.url)
    page = seen.open()
    expect(page.locator("#script")).to_have_text("the script runs")
    assert page.evaluate("getComputedStyle(document.getElementById('count')).color") == "rgb(0, 128, 0)"
    for count in (1, 2):
        page.click("button")
        expect(page.locator("#count")).to_have_text(f"{count} in the basket")
        assert page.url == running.url
    assert seen.fetch("me", FORWARDED) == {
        "url": f"{running.url}me",
        "client": "127.0.0.1",
    }
    seen.check()


def test_jupyterlab(start: Start, visit: Open, tmp_path: pathlib.Path) -> None:
    files = pathlib.Path(shutil.copytree(APPS / "jupyter", tmp_path / "jupyter"))
    running = start(files, JUPYTER_TOKEN="secret", JUPYTER_CONFIG_DIR=str(files), HOME=str(tmp_path))
    seen = visit(running.url)
    page = seen.open("lab/tree/hello.ipynb?token=secret&reset")
    cell = page.locator(".jp-CodeCell")
    expect(cell).to_contain_text("print")
    expect(page.get_by_role("button", name="Python 3 (ipykernel) | Idle")).to_be_visible()
    cell.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Shift+Enter")
    expect(cell.locator(".jp-OutputArea-output").first).to_have_text("42000")
    page.keyboard.press("Control+s")
    seen.check()
    assert any("/channels" in url for url in seen.sockets)


def test_streamlit(start: Start, visit: Open, tmp_path: pathlib.Path) -> None:
    running = start(APPS / "streamlit", STREAMLIT_BROWSER_GATHER_USAGE_STATS="false")
    seen = visit(running.url)
    page = seen.open()
    page.get_by_label("Name").fill("Ada")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Hello Ada")).to_be_visible()
    (tmp_path / "file.txt").write_text("x" * 3000)
    page.locator("input[type=file]").set_input_files(tmp_path / "file.txt")
    expect(page.get_by_text("3000 bytes arrived")).to_be_visible()
    with page.expect_download() as downloading:
        page.get_by_text("Download").click()
    assert pathlib.Path(downloading.value.path()).read_text() == "downloaded text"
    seen.check()
    assert len(seen.sockets) == 1


def test_vite(start: Start, visit: Open, tmp_path: pathlib.Path) -> None:
    files = pathlib.Path(shutil.copytree(APPS / "vite", tmp_path / "vite"))
    (files / "node_modules").symlink_to(NODE_MODULES if (NODE_MODULES / "vite").exists() else missing("vite"))
    running = start(files)
    seen = visit(running.url)
    page = seen.open()
    expect(page.locator("#message")).to_have_text("first")
    loaded = page.inner_text("#loads")
    with page.expect_event("console", lambda message: "hot updated" in message.text):
        replace(running.directory / "message.js", 'export const message = "second";\n')
    expect(page.locator("#message")).to_have_text("second")
    assert page.inner_text("#loads") == loaded  # by HMR, without a reload
    with page.expect_event("console", lambda message: "hot updated" in message.text):
        replace(running.directory / "style.css", "#message { color: rgb(0, 0, 255); }\n")
    assert page.evaluate("getComputedStyle(document.getElementById('message')).color") == "rgb(0, 0, 255)"
    seen.check()
    assert len(seen.sockets) == 1


def test_datasette(start: Start, visit: Open, tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "datasette"
    directory.mkdir()
    with sqlite3.connect(directory / "data.db") as database:
        database.execute("create table planets (name text primary key, moons integer)")
        database.executemany("insert into planets values (?, ?)", [("Mars", 2), ("Saturn", 274)])
    database.close()
    running = start(directory)
    seen = visit(running.url)
    page = seen.open()
    page.click("text=planets")
    page.click("a:text-is('Mars')")
    assert page.url == f"{running.url}data/planets/Mars"
    page.click("text=JSON")
    assert "Mars" in page.inner_text("body")
    seen.open("data")
    page.click(".CodeMirror")
    page.keyboard.press("Control+a")
    page.keyboard.type("select sum(moons) from planets")
    page.click("[type=submit][value='Run SQL']")
    expect(page.locator(".rows-and-columns")).to_contain_text("276")
    seen.check()


def test_mkdocs(start: Start, visit: Open, hub: HubProcess) -> None:
    running = start(APPS / "mkdocs")
    seen = visit(running.url)
    page = seen.open()
    page.click("text=the next page")
    assert page.url == f"{running.url}other/"
    seen.open("other/?q=pomegranate")  # the search runs in a worker, which fetches the index
    expect(page.locator("#mkdocs-search-results")).to_contain_text("Other")
    page.keyboard.press("Escape")
    if hub.mode == "host":
        with page.expect_navigation():
            replace(running.directory / "docs" / "other.md", "# Changed\n")
        expect(page.locator("h1")).to_contain_text("Changed")
    seen.check()


def test_prometheus(start: Start, visit: Open, tmp_path: pathlib.Path) -> None:
    program("prometheus")
    directory = tmp_path / "prometheus"
    directory.mkdir()
    (directory / "prometheus.yml").write_text("global: {scrape_interval: 1s}\n")
    running = start(directory)
    seen = visit(running.url)
    page = seen.open()
    assert page.url.endswith("/graph")
    page.fill("textarea", "vector(42)")
    page.click("[value=Execute]")
    expect(page.locator("body")).to_contain_text("42")
    seen.open("classic/targets")
    known = "uncaught: Unexpected token 'export'"  # Debian's package loads a module as a script
    seen.faults[:] = [fault for fault in seen.faults if fault != known]
    seen.check()
