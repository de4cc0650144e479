"""A target that receives uploads and counts their bytes: `python -m bench.upload_target`.

It prints `listening PORT`. It serves one connection after another, each with one request with a Content-Length. The
body of the response is the number of received bytes.
"""

from __future__ import annotations

import re
import socket

READ_BYTES = 1 << 20


def serve(connection: socket.socket, buffer: memoryview) -> None:
    """Receive one upload. Ignores a connection that closes before its head."""
    head = b""
    while b"\r\n\r\n" not in head:
        more = connection.recv(READ_BYTES)
        if not more:
            return
        head += more
    head, _, body = head.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    assert length is not None, head
    expected, got = int(length[1]), len(body)
    while got < expected:
        read = connection.recv_into(buffer)
        if not read:
            break
        got += read
    text = b"%d" % got
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))


def main() -> None:
    buffer = memoryview(bytearray(READ_BYTES))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print("listening", listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                serve(connection, buffer)


if __name__ == "__main__":
    main()
