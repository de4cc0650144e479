"""conn_id → what carries its bytes: a pipe in memory or a Unix socket, behind one interface."""

from fastpipe.extensions import select_twins

select_twins(__path__)

from .carrier_policy import CarrierPolicy, Share  # noqa: E402 - after the choice, here and below
from .counters import ConnectionCounters  # noqa: E402
from .inbound import FirstPacketBudget  # noqa: E402
from .limits import ConnectionLimits  # noqa: E402
from .manager import PacketConnManager  # noqa: E402
from .memory import MemoryConnection, MemoryConnManager  # noqa: E402
from .mixed import MixedConnManager  # noqa: E402
from .uds import UDSAcceptor, UDSConnManager  # noqa: E402

__all__ = [
    "CarrierPolicy",
    "ConnectionCounters",
    "ConnectionLimits",
    "FirstPacketBudget",
    "MemoryConnManager",
    "MemoryConnection",
    "MixedConnManager",
    "PacketConnManager",
    "Share",
    "UDSAcceptor",
    "UDSConnManager",
]
