"""rclone on WebDAV servers through the hub, by host and by path."""

from __future__ import annotations

import pathlib
import random
import subprocess
from collections.abc import Callable, Iterator

import pytest

from ..limits import scaled
from .browser_processes import ENVIRON, HubProcess, Names, Start, program

Rclone = Callable[..., str]


@pytest.fixture
def names(hub: HubProcess) -> Iterator[Names]:
    proxy = Names(hub)
    yield proxy
    proxy.close()


@pytest.fixture
def rclone(names: Names, hub: HubProcess, tmp_path: pathlib.Path) -> Rclone:
    """rclone(arguments): its standard output. `dav:` is the cluster c1."""
    config = tmp_path / "rclone.conf"
    config.write_text(f"[dav]\ntype = webdav\nurl = {hub.url('c1')}\nvendor = other\n")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [
                program("rclone"),
                f"--config={config}",
                f"--ca-cert={hub.credentials.authority}",
                "--retries=1",
                "--low-level-retries=1",
                *arguments,
            ],
            env=ENVIRON | {"HTTPS_PROXY": names.url},
            capture_output=True,
            text=True,
            timeout=scaled(60),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def files(tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder of a server, with one file."""
    made = tmp_path / "server"
    (made / "files").mkdir(parents=True)
    (made / "files" / "one.txt").write_text("one")
    return made


def test_rclone_lists_uploads_and_moves(
    start: Start, rclone: Rclone, files: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    program("rclone")
    run_through(rclone, start(files).directory / "files", tmp_path)


def test_rclone_on_wsgidav(start: Start, rclone: Rclone, files: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """WsgiDAV compares scheme and host of Destination with those of the request."""
    run_through(rclone, start(files).directory / "files", tmp_path)


def run_through(rclone: Rclone, served: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """List, upload, move, copy, and delete, and look at the server's own files."""
    assert rclone("lsf", "dav:") == "one.txt\n"
    data = random.Random(15).randbytes(3_000_000)
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "a file, 100%.bin").write_bytes(data)
    rclone("copy", str(tmp_path / "up"), "dav:folder/inner")
    assert (served / "folder" / "inner" / "a file, 100%.bin").read_bytes() == data
    rclone("moveto", "dav:folder/inner/a file, 100%.bin", "dav:moved.bin")
    assert (served / "moved.bin").read_bytes() == data
    assert not (served / "folder" / "inner" / "a file, 100%.bin").exists()
    rclone("copyto", "dav:moved.bin", "dav:folder/copied.bin")
    rclone("moveto", "dav:folder", "dav:renamed")
    assert (served / "renamed" / "copied.bin").read_bytes() == data
    assert sorted(rclone("lsf", "-R", "dav:").split()) == [
        "moved.bin",
        "one.txt",
        "renamed/",
        "renamed/copied.bin",
        "renamed/inner/",
    ]
    rclone("check", "--download", "dav:", str(served))
    rclone("purge", "dav:renamed")
    assert not (served / "renamed").exists()
