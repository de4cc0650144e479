"""Responses where the policy gives a request no target."""

from __future__ import annotations

import logging

from ..errors import PolicyError, Redirected, Refused, Responded
from ..messages import RequestHead
from ..syntax import readable
from .client_side import ClientSide

__all__ = ["respond_to_policy"]

CHALLENGES = {
    401: [(b"WWW-Authenticate", b"Bearer")],  # RFC 9110, section 15.5.2
    407: [(b"Proxy-Authenticate", b'Basic realm="the user name is the cluster"')],  # RFC 9110, section 15.5.8
}

logger = logging.getLogger(__name__)


SHOWN_CHARS = 100
"""The most characters of a request's host and path in a log line."""


def respond_to_policy(client: ClientSide, error: BaseException, head: RequestHead | None) -> None:
    """Log why the policy gave no target, and respond with it. The log and not the client has what a fault of it was.

    head: as the policy got it. The log has its host and path.
    """
    if isinstance(error, Redirected):
        client.respond_with(308, "it is found below", fields=[(b"Location", error.location)])
        return
    if isinstance(error, Responded):
        client.respond_with(200, error.body, fields=error.fields)
        return
    extra: dict[str, object] = {**client.log_fields(), "stage": "policy", "fault": "policy", **_asked(head)}
    if isinstance(error, Refused):
        extra.update(status=error.status, fault=error.fault)
        if error.cluster:
            extra["cluster"] = readable(error.cluster, SHOWN_CHARS)
        if error.limit:
            extra["limit"] = error.limit
        logger.info(error.reason, extra=extra)
        client.respond_with(
            error.status,
            error.reason,
            close=error.status == 421,
            fields=CHALLENGES.get(error.status),
            fault=error.fault,
            limit=error.limit,
        )
        return
    extra["status"] = 503
    if isinstance(error, PolicyError):
        logger.error(str(error), extra=extra)
    else:
        logger.error("the request could not be decided", extra=extra, exc_info=error)
    client.respond_with(503, "the request could not be decided", fault="policy")


def _asked(head: RequestHead | None) -> dict[str, object]:
    """Return the log fields of a request. A query may hold secrets, so it is left out."""
    if head is None:
        return {}
    what = "authority" if head.method == "CONNECT" else "path"
    fields = {
        "peer": head.peer,
        "cluster": head.cluster,
        "method": head.method,
        "host": readable(head.host, SHOWN_CHARS),
        what: readable(head.target.partition(b"?")[0], SHOWN_CHARS),
    }
    return {name: value for name, value in fields.items() if value}
