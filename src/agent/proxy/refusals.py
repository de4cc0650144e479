"""Responses where the policy gives a request no target."""

from __future__ import annotations

import logging

from ..errors import PolicyError, Redirected, Refused, Responded
from .client_side import ClientSide

__all__ = ["respond_to_policy"]

CHALLENGES = {
    401: [(b"WWW-Authenticate", b"Bearer")],  # RFC 9110, section 15.5.2
    407: [(b"Proxy-Authenticate", b'Basic realm="the user name is the cluster"')],  # RFC 9110, section 15.5.8
}

logger = logging.getLogger(__name__)


def respond_to_policy(client: ClientSide, error: BaseException) -> None:
    """Log why the policy gave no target, and respond with it. The log and not the client has what a fault of it was."""
    if isinstance(error, Redirected):
        client.respond_with(308, "it is found below", fields=[(b"Location", error.location)])
        return
    if isinstance(error, Responded):
        client.respond_with(200, error.body, fields=error.fields)
        return
    extra: dict[str, object] = {**client.log_fields(), "stage": "policy", "fault": "policy"}
    if isinstance(error, Refused):
        extra.update(status=error.status, fault=error.fault)
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
