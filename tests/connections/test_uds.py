"""The Unix socket: its place, its permitted peers, and its behaviour if the kernel's backlog is full."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pathlib
import re
import socket
import stat
import sys

import pytest

from agent.connections import ConnectionLimits, UDSAcceptor, UDSConnManager
from agent.connections.socket_end import SocketEnd
from agent.errors import ConfigError
from agent.outcome import Outcome

from .conftest import DATA, ERROR, EchoPeer, Peer, RecordingTunnel, WordyPeer, turns, until

FIRST = b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n"

names = pytest.mark.parametrize("abstract", [True, False], ids=["abstract", "paths"])


present = os.path.exists
names_in = os.listdir


def names_of(path: str) -> list[str]:
    return pathlib.Path(path).read_text().splitlines()


def refuse(conn_id: int, outcome: Outcome) -> Peer:
    raise AssertionError("nobody may come")


async def test_the_socket_lies_in_a_private_directory_that_goes_with_it() -> None:
    acceptor = UDSAcceptor(refuse)
    await acceptor.start()
    directory = os.path.dirname(acceptor.path)
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    assert stat.S_ISSOCK(os.stat(acceptor.path).st_mode)
    assert stat.S_IMODE(os.stat(acceptor.path).st_mode) == 0o600
    await acceptor.close()
    assert not present(directory)
    await acceptor.close()


async def test_a_configured_path_is_used_and_its_directory_made(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    acceptor = UDSAcceptor(refuse, socket_path=str(path))
    await acceptor.start()
    assert acceptor.path == str(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await acceptor.close()
    assert names_in(tmp_path) == []


async def test_a_directory_that_was_there_stays(tmp_path: pathlib.Path) -> None:
    acceptor = UDSAcceptor(refuse, socket_path=str(tmp_path / "agent.sock"))
    await acceptor.start()
    (tmp_path / "somebody's").write_text("x")
    await acceptor.close()
    assert names_in(tmp_path) == ["somebody's"]


def left_behind(path: pathlib.Path) -> None:
    """A socket as a killed process leaves it."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


async def test_a_socket_that_a_killed_agent_left_is_replaced(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "agent.sock"
    left_behind(path)
    before = os.lstat(path)
    acceptor = UDSAcceptor(refuse, socket_path=str(path))
    await acceptor.start()
    assert os.lstat(path).st_ctime_ns > before.st_ctime_ns
    assert "nobody listened on" in caplog.text
    with pytest.raises(ConfigError, match="uds_socket_path"):  # this one is alive
        await UDSAcceptor(refuse, socket_path=str(path)).start()
    await acceptor.close()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "kind", ["file", "directory", "dangling link", "link to a dead socket", "others' dead socket", "live socket"]
)
async def test_a_path_it_did_not_make_is_refused_and_left_alone(
    tmp_path: pathlib.Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent.sock"
    live = None
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "link to a dead socket":
        left_behind(tmp_path / "elsewhere.sock")
        path.symlink_to(tmp_path / "elsewhere.sock")
    elif kind == "others' dead socket":
        left_behind(path)
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    else:
        live = socket.socket(socket.AF_UNIX)
        live.bind(str(path))
        live.listen(0)
    before = os.lstat(path)
    acceptor = UDSAcceptor(refuse, socket_path=str(path))
    with pytest.raises(ConfigError, match="uds_socket_path") as caught:
        await acceptor.start()
    assert caught.value.field == "uds_socket_path"
    await acceptor.close()
    assert os.lstat(path).st_ino == before.st_ino
    if live is not None:
        live.close()


async def test_a_socket_that_was_replaced_meanwhile_is_not_removed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "agent.sock"
    acceptor = UDSAcceptor(refuse, socket_path=str(path))
    await acceptor.start()
    path.unlink()
    path.write_text("another's")
    await acceptor.close()
    assert path.read_text() == "another's"


@pytest.mark.parametrize("path", ["/proc/no/such/place.sock", "/dev/null/agent.sock", "/tmp/" + "x" * 120])
async def test_a_path_that_can_not_be_is_said_clearly(path: str) -> None:
    with pytest.raises(ConfigError, match="uds_socket_path"):
        await UDSAcceptor(refuse, socket_path=path).start()


async def test_two_agents_have_two_sockets() -> None:
    first, second = UDSAcceptor(refuse), UDSAcceptor(refuse)
    await first.start()
    await second.start()
    assert first.path != second.path
    await first.close()
    await second.close()


@names
@pytest.mark.parametrize("bound", [True, False], ids=["named", "nameless"])
async def test_a_stranger_is_dropped_with_one_warning(
    abstract: bool, bound: bool, caplog: pytest.LogCaptureFixture, tmp_path: pathlib.Path
) -> None:
    acceptor = UDSAcceptor(refuse, abstract_names=abstract)
    await acceptor.start()
    loop = asyncio.get_running_loop()
    for number in range(3):
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        if bound:
            sock.bind(str(tmp_path / f"stranger{number}") if number else f"\0stranger/{os.getpid()}/{loop.time()}")
        sock.connect(acceptor.path)
        sock.send(FIRST)
        with contextlib.suppress(ConnectionResetError):  # or the end of the stream: it depends on who was faster
            assert await loop.sock_recv(sock, 100) == b""
        sock.close()
    await acceptor.close()
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


async def test_a_stranger_with_a_guess_of_a_name_meets_an_unguessable_part() -> None:
    peers: dict[int, Peer] = {}

    def accept(conn_id: int, outcome: Outcome) -> Peer:
        peers[conn_id] = WordyPeer(conn_id, outcome)
        return peers[conn_id]

    acceptor, other = UDSAcceptor(accept), UDSAcceptor(accept)
    await acceptor.start()
    await other.start()
    mine, theirs = acceptor.announce(1, 1, lambda *_: None), other.announce(1, 1, lambda *_: None)
    assert mine.name != theirs.name
    assert len(mine.name.split("/")[1]) == 32
    sock = other.bind(theirs)
    sock.connect(acceptor.path)
    await turns()
    assert peers == {}
    sock.close()
    await acceptor.close()
    await other.close()


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
async def test_names_that_a_stranger_has_taken_before_are_done_without() -> None:
    peers: dict[int, Peer] = {}

    def accept(conn_id: int, outcome: Outcome) -> Peer:
        peers[conn_id] = EchoPeer(conn_id, outcome)
        return peers[conn_id]

    acceptor = UDSAcceptor(accept)
    await acceptor.start()
    tunnel = RecordingTunnel()
    manager = UDSConnManager(tunnel, acceptor)
    manager.packet_received(1, DATA, FIRST, "")
    table = names_of("/proc/net/unix")
    seen = next(line.partition("@")[2] for line in table if acceptor._token in line)
    squatters = []
    for conn_id in range(2, 12):  # what would come next
        sock = socket.socket(socket.AF_UNIX)
        sock.bind("\0" + re.sub(r"/1$", f"/{conn_id}", seen))
        squatters.append(sock)
    for conn_id in range(2, 12):
        manager.packet_received(conn_id, DATA, FIRST, "")
    await until(lambda: all(tunnel.sent(n) == FIRST for n in range(1, 12)))
    manager.tunnel_lost(None)
    await until(lambda: all(peer.lost for peer in peers.values()))
    for sock in squatters:
        sock.close()
    await acceptor.close()


@names
async def test_both_kinds_of_names_carry_and_leave_nothing(abstract: bool) -> None:
    peers: dict[int, Peer] = {}

    def accept(conn_id: int, outcome: Outcome) -> Peer:
        peers[conn_id] = EchoPeer(conn_id, outcome)
        return peers[conn_id]

    acceptor = UDSAcceptor(accept, abstract_names=abstract)
    await acceptor.start()
    tunnel = RecordingTunnel()
    manager = UDSConnManager(tunnel, acceptor)
    for conn_id in range(1, 51):
        manager.packet_received(conn_id, DATA, b"", "")
        manager.packet_received(conn_id, DATA, FIRST, "")
    await until(lambda: all(tunnel.sent(n) == FIRST for n in range(1, 51)))
    assert os.listdir(os.path.dirname(acceptor.path)) == ["proxy.sock"]
    manager.packet_received(51, DATA, FIRST, "")
    manager.packet_received(51, 1, b"", "gone before it was accepted")
    manager.tunnel_lost(None)
    await until(lambda: all(peer.lost for peer in peers.values()))
    await turns()
    directory = os.path.dirname(acceptor.path)
    assert 51 not in peers
    assert os.listdir(directory) == ["proxy.sock"]
    assert acceptor._announced == {}
    assert acceptor._accepted == set()
    await acceptor.close()
    assert not present(directory)


async def test_no_warning_for_a_connection_that_ended_before_it_was_accepted(caplog: pytest.LogCaptureFixture) -> None:
    acceptor = UDSAcceptor(refuse)
    await acceptor.start()
    tunnel = RecordingTunnel()
    manager = UDSConnManager(tunnel, acceptor)
    for conn_id in range(1, 11):
        manager.packet_received(conn_id, DATA, FIRST, "")
        manager.packet_received(conn_id, ERROR, b"", "")
    await turns()
    assert acceptor._announced == {}
    assert caplog.records == []
    manager.tunnel_lost(None)
    await acceptor.close()


async def test_a_full_backlog_makes_connections_wait_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog of one, and 60 connections in one turn of the loop: EAGAIN, which no readiness event follows."""
    monkeypatch.setattr("agent.connections.acceptor._BACKLOG", 1)
    peers: dict[int, Peer] = {}

    def accept(conn_id: int, outcome: Outcome) -> Peer:
        peers[conn_id] = EchoPeer(conn_id, outcome)
        return peers[conn_id]

    acceptor = UDSAcceptor(accept)
    await acceptor.start()
    tunnel = RecordingTunnel()
    manager = UDSConnManager(tunnel, acceptor)
    for conn_id in range(1, 61):
        manager.packet_received(conn_id, DATA, FIRST, "")
        for n in range(20):
            manager.packet_received(conn_id, DATA, b"%d;" % n, "")
    waiting = [c for c in manager._open.values() if not c.carrier.connected]  # type: ignore[attr-defined]
    assert len(waiting) > 50
    sent = FIRST + b"".join(b"%d;" % n for n in range(20))
    await until(lambda: all(tunnel.sent(n) == sent for n in range(1, 61)))
    manager.tunnel_lost(None)
    await until(lambda: all(peer.lost for peer in peers.values()))
    await acceptor.close()


async def test_a_backlog_that_stays_full_fails_clearly() -> None:
    acceptor = UDSAcceptor(refuse)
    await acceptor.start()
    blocked = socket.socket(socket.AF_UNIX)
    path = os.path.join(os.path.dirname(acceptor.path), "blocked")
    blocked.bind(path)
    blocked.listen(0)
    filler = socket.socket(socket.AF_UNIX)
    filler.connect(path)
    tunnel = RecordingTunnel()
    manager = UDSConnManager(tunnel, acceptor, limits=ConnectionLimits(connect_timeout_s=0.05))
    real, acceptor.path = acceptor.path, path
    manager.packet_received(1, DATA, FIRST, "")
    assert tunnel.packets == []
    await until(lambda: manager.open_connections == 0)
    assert tunnel.codes(1) == [ERROR]
    acceptor.path = real
    assert acceptor._announced == {}
    filler.close()
    blocked.close()
    os.unlink(path)
    await acceptor.close()


async def test_no_descriptors_left_is_an_error_for_that_connection_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    peers: dict[int, Peer] = {}

    def accept(conn_id: int, outcome: Outcome) -> Peer:
        peers[conn_id] = EchoPeer(conn_id, outcome)
        return peers[conn_id]

    acceptor = UDSAcceptor(accept)
    await acceptor.start()
    tunnel = RecordingTunnel()
    manager = UDSConnManager(tunnel, acceptor)

    def exhausted(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("agent.connections.acceptor.socket.socket", exhausted)
        manager.packet_received(1, DATA, FIRST, "")
    assert tunnel.codes(1) == [ERROR]
    assert tunnel.packets[-1][-1] == "the agent has no descriptor left"
    assert acceptor._announced == {}
    manager.packet_received(2, DATA, FIRST, "")
    await until(lambda: tunnel.sent(2) == FIRST)
    assert list(peers) == [2]
    manager.tunnel_lost(None)
    await until(lambda: peers[2].lost)
    await acceptor.close()


async def test_an_acceptor_that_is_not_listening_opens_nothing() -> None:
    acceptor = UDSAcceptor(refuse)
    tunnel = RecordingTunnel()
    manager = UDSConnManager(tunnel, acceptor)
    manager.packet_received(1, DATA, FIRST, "")
    assert tunnel.codes(1) == [ERROR]
    manager.tunnel_lost(None)


# ---------------------------------------------------------------- the socket's end


class Watcher:
    """The protocol of a SocketEnd."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.eofs = 0
        self.lost: list[Exception | None] = []
        self.paused = False
        self.keep_open = True

    def data_received(self, data: bytes) -> None:
        assert not self.lost
        self.received += data

    def eof_received(self) -> bool:
        self.eofs += 1
        return self.keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False


def dialled(tmp_path: pathlib.Path) -> tuple[SocketEnd, Watcher, socket.socket]:
    """A SocketEnd, its protocol, and the plain socket at its other end."""
    path = str(tmp_path / "listener")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        watcher = Watcher()
        end = SocketEnd(asyncio.get_running_loop(), sock, watcher, limit_bytes=65536, dial_timeout_s=1.0)
        end.dial(path)
        peer, _ = listener.accept()
    peer.setblocking(False)
    return end, watcher, peer


async def test_more_than_a_socket_holds_arrives_in_order(tmp_path: pathlib.Path) -> None:
    end, watcher, peer = dialled(tmp_path)
    loop = asyncio.get_running_loop()
    data = os.urandom(2_000_000)
    for start in range(0, len(data), 7_001):
        end.write(data[start : start + 7_001])
    assert watcher.paused
    end.write_eof()
    got = bytearray()
    while chunk := await loop.sock_recv(peer, 65536):
        got += chunk
    assert got == data
    assert not watcher.paused
    await loop.sock_sendall(peer, b"still readable")
    await until(lambda: watcher.received == b"still readable")
    peer.close()
    await until(lambda: watcher.lost == [None])
    end.write(b"dropped")
    end.close()


async def test_a_half_close_is_told_apart_from_a_close(tmp_path: pathlib.Path) -> None:
    end, watcher, peer = dialled(tmp_path)
    peer.shutdown(socket.SHUT_WR)
    await until(lambda: watcher.eofs == 1)
    assert not end.peer_closed()
    assert watcher.lost == []
    end.write(b"onwards")
    assert await asyncio.get_running_loop().sock_recv(peer, 100) == b"onwards"
    peer.close()
    assert end.peer_closed()
    end.write(b"into nothing")
    await until(lambda: watcher.lost == [None])


async def test_what_a_closed_peer_had_written_is_read_to_its_end(tmp_path: pathlib.Path) -> None:
    """With bytes unread at its side the kernel marks the socket with ECONNRESET, which libuv reports once."""
    end, watcher, peer = dialled(tmp_path)
    end.write(bytes(50_000))
    data = os.urandom(150_000)
    assert peer.send(data) == len(data)
    end.pause_reading()
    peer.close()
    await turns()
    assert watcher.received == b""
    end.resume_reading()
    await until(lambda: len(watcher.lost) == 1)
    assert watcher.received == data


async def test_a_write_that_fails_loses_nothing_of_what_was_to_be_read(tmp_path: pathlib.Path) -> None:
    end, watcher, peer = dialled(tmp_path)
    data = os.urandom(150_000)
    assert peer.send(data) == len(data)
    end.write(bytes(1_000_000))
    end.pause_reading()
    peer.close()
    end.write(bytes(100))
    await until(lambda: len(watcher.lost) == 1)
    assert watcher.received == data


async def test_descriptor_numbers_come_back_clean_after_errors(tmp_path: pathlib.Path) -> None:
    """A loop that still knew the old socket under the number would refuse the new one."""
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        end, watcher, peer = dialled(tmp_path / str(number))
        end.write(bytes(1_000_000) if number % 2 else b"unread")
        if number % 3:
            end.pause_reading()
        peer.send(b"last words")
        peer.close()
        await turns(3)
        end.resume_reading()
        await until(lambda watcher=watcher: watcher.lost)
        assert watcher.received == b"last words"


async def test_a_listener_that_is_not_there_is_a_loss(tmp_path: pathlib.Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    watcher = Watcher()
    end = SocketEnd(asyncio.get_running_loop(), sock, watcher, limit_bytes=65536, dial_timeout_s=1.0)
    end.dial(str(tmp_path / "nobody"))
    end.write(b"x")
    await until(lambda: watcher.lost)
    assert isinstance(watcher.lost[0], FileNotFoundError)
