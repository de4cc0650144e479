"""git over HTTPS through the hub, by host and by path. git's own backend is behind nginx."""

from __future__ import annotations

import pathlib
import random
import subprocess
from collections.abc import Iterator

import pytest

from ..limits import scaled
from .browser_processes import ENVIRON, HubProcess, Names, Program, Start, free_port, program

IDENTITY = {f"GIT_{role}_{field}": "a@example.com" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}


@pytest.fixture
def names(hub: HubProcess) -> Iterator[Names]:
    proxy = Names(hub)
    yield proxy
    proxy.close()


def git(cwd: pathlib.Path, *arguments: str, **variables: str) -> str:
    own = {name: value for name, value in ENVIRON.items() if not name.startswith("GIT_")}
    own |= IDENTITY | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_TERMINAL_PROMPT": "0"}
    command = [program("git"), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=own | variables, capture_output=True, text=True, timeout=scaled(90), check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[tuple[pathlib.Path, int]]:
    """git-http-backend behind nginx and fcgiwrap. Gives (the bare repository, the port)."""
    root = tmp_path / "git"
    (root / "work").mkdir(parents=True)
    (root / "work" / "file").write_bytes(random.Random(15).randbytes(3_000_000))
    for arguments in (["init", "-q", "-b", "main"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        git(root / "work", *arguments)
    git(root, "clone", "-q", "--bare", "work", "repository.git")
    git(root / "repository.git", "config", "http.receivepack", "true")
    script = pathlib.Path(git(root, "--exec-path").strip()) / "git-http-backend"
    port = free_port()
    temporary = "".join(
        f"{name}_temp_path {root}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (root / "nginx.conf").write_text(
        f"""
        daemon off; master_process off; user root; pid {root}/pid; error_log {root}/error.log;
        events {{ }}
        http {{
          {temporary} access_log off; client_max_body_size 0;
          server {{
            listen 127.0.0.1:{port};
            location / {{
              fastcgi_pass unix:{root}/fcgi;
              fastcgi_param SCRIPT_FILENAME {script};
              fastcgi_param GIT_HTTP_EXPORT_ALL "";
              fastcgi_param GIT_PROJECT_ROOT {root};
              fastcgi_param REMOTE_USER ada;
              fastcgi_param PATH_INFO $uri;
              fastcgi_param QUERY_STRING $query_string;
              fastcgi_param REQUEST_METHOD $request_method;
              fastcgi_param CONTENT_TYPE $content_type;
              fastcgi_param CONTENT_LENGTH $content_length;
              fastcgi_param HTTP_CONTENT_ENCODING $http_content_encoding;
              fastcgi_param SERVER_PROTOCOL $server_protocol;
              fastcgi_param REMOTE_ADDR $remote_addr;
            }}
          }}
        }}
        """
    )
    wrapper = Program(root / "fcgiwrap.log", ["fcgiwrap", "-s", f"unix:{root}/fcgi", "-c", "2"], root)
    nginx = Program(root / "nginx.log", ["nginx", "-c", f"{root}/nginx.conf", "-e", f"{root}/error.log"], root)
    try:
        nginx.wait_listening(port)
        yield root / "repository.git", port
    finally:
        nginx.close()
        wrapper.close()


def test_git_clones_and_pushes(
    start: Start, hub: HubProcess, names: Names, server: tuple[pathlib.Path, int], tmp_path: pathlib.Path
) -> None:
    repository, port = server
    (tmp_path / "empty").mkdir()
    running = start(tmp_path / "empty", port=port)
    options = {"HTTPS_PROXY": names.url, "GIT_SSL_CAINFO": str(hub.credentials.authority)}
    git(tmp_path, "clone", "-q", f"{running.url}repository.git", "copy", **options)
    copy = tmp_path / "copy"
    assert (copy / "file").stat().st_size == 3_000_000
    (copy / "more").write_bytes(random.Random(16).randbytes(2_000_000))
    git(copy, "add", "more")
    git(copy, "commit", "-q", "-m", "two")
    git(copy, "push", "-q", "origin", "main", **options)
    assert git(repository, "log", "--format=%s", "main").split() == ["two", "one"]
