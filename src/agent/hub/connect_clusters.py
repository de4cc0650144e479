"""Names the cluster of a CONNECT: by the user name of `Proxy-Authorization: Basic`, by `Tunnel-Cluster`, or by its
listener.

    sources                      response
    one, or two that agree       the cluster's own
    two that differ              400
    none, or a malformed one     407 with `Proxy-Authenticate: Basic`

The path and the Host do not matter, since clients send any Host with a CONNECT.
"""

from __future__ import annotations

import base64
import binascii

from ..errors import Refused
from ..messages import RequestHead
from ..syntax import is_label

__all__ = ["cluster_of"]

MISSING = (
    "CONNECT must name its cluster, as the user name of the proxy's URL (http://CLUSTER:@HUB) or in the field "
    "Tunnel-Cluster"
)
MALFORMED = "Proxy-Authorization must be Basic, with a cluster's name as the user name"
NO_LABEL = "Tunnel-Cluster must be a cluster's name, once"
TWO = "Proxy-Authorization and Tunnel-Cluster name different clusters"
NOT_HERE = "this port leads to another cluster than the CONNECT names"


def cluster_of(request: RequestHead) -> str:
    """Return the name of the cluster that a CONNECT is for. Raises Refused: 400, 407."""
    named = [value for name, value in request.headers if name.lower() == b"tunnel-cluster"]
    credentials = [value for name, value in request.headers if name.lower() == b"proxy-authorization"]
    if len(set(named)) > 1 or not all(map(is_label, named)):
        raise Refused(400, NO_LABEL)
    user = _user_of(credentials) if credentials else b""
    if user and named and user != named[0]:
        raise Refused(400, TWO)
    cluster = (user or (named[0] if named else b"")).decode("ascii")
    if request.cluster and cluster and cluster != request.cluster:
        raise Refused(400, NOT_HERE)
    cluster = cluster or request.cluster
    if not cluster:
        raise Refused(407, MISSING)
    return cluster


def _user_of(credentials: list[bytes]) -> bytes:
    """The user name in the values of all Proxy-Authorization fields (RFC 7617, section 2). Raises Refused: 407."""
    scheme, _, text = credentials[0].partition(b" ")
    if len(credentials) != 1 or scheme.lower() != b"basic":
        raise Refused(407, MALFORMED)
    try:
        user, colon, _ = base64.b64decode(text.strip(b" "), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        raise Refused(407, MALFORMED) from None
    if not colon or (user and not is_label(user)):
        raise Refused(407, MALFORMED)
    return user
