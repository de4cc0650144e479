"""The allow-list of the cluster's services, from a file. All other services are denied."""

from __future__ import annotations

from ..syntax import is_label
from .reloading import Reloaded

__all__ = ["ServiceAllowList"]

Allowed = frozenset[tuple[bytes, bytes, int]]

ANY_PORT = 0


class ServiceAllowList:
    """The services in a file of lines `namespace/service[:port]` with `#` comments. Without a file it is empty.

    A line without a port allows every port of its service. Each change of the file is read. If the file becomes
    malformed or vanishes, the last good content stays in force, and an ERROR is logged.
    """

    def __init__(self, path: str = "", *, check_interval_s: float = 1.0) -> None:
        """path: "" for no file. check_interval_s: how long a change may go unseen. Raises ConfigError."""
        self._check_interval_s = check_interval_s
        self._file: Reloaded[Allowed] | None = None
        self.use(path)

    def use(self, path: str) -> None:
        """Take the services from this file from now on. Raises ConfigError; then what was in force stays so."""
        if not path:
            self._file = None
        else:
            self._file = Reloaded(
                [path], parse_services, field="service_allow_file", check_interval_s=self._check_interval_s
            )

    @property
    def problem(self) -> str | None:
        """Why the file as it is now can't be used, None where it can."""
        return None if self._file is None else self._file.problem

    def allows(self, namespace: bytes, service: bytes, port: int) -> bool:
        """Whether requests may go to this port, 1 to 65535, of a service. Raises nothing."""
        if self._file is None:
            return False
        allowed = self._file.refresh()
        return (namespace, service, port) in allowed or (namespace, service, ANY_PORT) in allowed


def parse_services(contents: list[bytes]) -> Allowed:
    """The services in a file's content, the port 0 where all are meant. Raises ValueError, which names the line."""
    found: set[tuple[bytes, bytes, int]] = set()
    for number, line in enumerate(contents[0].splitlines(), 1):
        text = line.partition(b"#")[0].strip()
        if not text:
            continue
        namespace, _, rest = text.partition(b"/")
        service, colon, port_text = rest.partition(b":")
        port = int(port_text) if port_text.isdigit() and len(port_text) <= 5 else 0
        if not is_label(namespace) or not is_label(service) or (colon and not 1 <= port <= 65535):
            raise ValueError(f"line {number} must be NAMESPACE/SERVICE or NAMESPACE/SERVICE:PORT, both RFC 1123 labels")
        found.add((namespace, service, port))
    return frozenset(found)
