"""conn_id → what carries its bytes: a pipe in memory or a Unix socket, behind one interface."""

from .counters import ConnectionCounters
from .inbound import FirstPacketBudget
from .manager import ConnectionLimits, PacketConnManager
from .memory import MemoryCarriers, MemoryConnection, MemoryConnManager
from .mixed import MixedConnManager, Share
from .uds import UDSAcceptor, UDSCarriers, UDSConnManager

__all__ = [
    "ConnectionCounters",
    "ConnectionLimits",
    "FirstPacketBudget",
    "MemoryCarriers",
    "MemoryConnManager",
    "MemoryConnection",
    "MixedConnManager",
    "PacketConnManager",
    "Share",
    "UDSAcceptor",
    "UDSCarriers",
    "UDSConnManager",
]
