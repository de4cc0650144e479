"""A target that sends back what it receives: `python -m bench.echo_target`.

It prints `listening PORT`, and serves one connection after another.
"""

from __future__ import annotations

import socket


def main() -> None:
    buffer = memoryview(bytearray(65536))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print("listening", listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while read := connection.recv_into(buffer):
                    connection.sendall(buffer[:read])


if __name__ == "__main__":
    main()
