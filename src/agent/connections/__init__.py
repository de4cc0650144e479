"""conn_id → what carries its bytes: a pipe in memory or a Unix socket, behind one interface."""

from .counters import ConnectionCounters
from .inbound import FirstPacketBudget
from .manager import ConnectionLimits, PacketConnManager
from .memory import MemoryConnection, MemoryConnManager
from .uds import UDSAcceptor, UDSConnManager

__all__ = [
    "ConnectionCounters",
    "ConnectionLimits",
    "FirstPacketBudget",
    "MemoryConnManager",
    "MemoryConnection",
    "PacketConnManager",
    "UDSAcceptor",
    "UDSConnManager",
]
