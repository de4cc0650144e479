"""Unix sockets that listen at a path."""

from __future__ import annotations

import os
import pathlib
import socket
import stat

import pytest

from agent.runtime.unix_sockets import OccupiedError, listen_at, locked, make_room_at


def test_only_the_owner_can_connect_and_the_file_goes_with_its_listener(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "s")
    with locked(str(tmp_path)):
        make_room_at(path)
        listener = listen_at(path, backlog=1)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with listener.sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        with pytest.raises(OccupiedError):
            make_room_at(path)
    listener.remove()
    listener.remove()
    assert not os.path.lexists(path)


def test_another_socket_in_its_place_stays(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "s")
    listener = listen_at(path, backlog=1)
    os.rename(path, f"{path}.old")
    other = listen_at(path, backlog=1)
    listener.remove()
    assert os.path.lexists(path)
    for each in (listener, other):
        each.sock.close()


def test_a_dead_process_s_socket_gives_way_and_a_file_does_not(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "s")
    listen_at(path, backlog=1).sock.close()
    make_room_at(path)
    assert not os.path.lexists(path)
    for make in (lambda: (tmp_path / "s").write_text("x"), lambda: os.symlink("elsewhere", path)):
        make()
        with pytest.raises(OccupiedError):
            make_room_at(path)
        os.unlink(path)


def test_a_path_that_cannot_be_bound_leaves_no_descriptor(tmp_path: pathlib.Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(OSError, match="No such file"):
        listen_at(str(tmp_path / "nowhere" / "s"), backlog=1)
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before
