"""ssh's ProxyCommand: joins standard input and output with a target, by CONNECT.

Arguments: the hub's port, the cluster, the target.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    sock.sendall(f"CONNECT {sys.argv[3]} HTTP/1.1\r\nHost: hub\r\nTunnel-Cluster: {sys.argv[2]}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            sys.exit(1)
        head += byte
    if not head.startswith(b"HTTP/1.1 200 "):
        sys.exit(1)

    def send() -> None:
        while data := os.read(0, 65536):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    while data := sock.recv(65536):
        while data:
            data = data[os.write(1, data) :]
