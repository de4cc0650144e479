"""conn_id → what carries its bytes: a pipe in memory or a Unix socket, behind one interface."""

from .carriage import Carriage, Share
from .counters import ConnectionCounters
from .inbound import FirstPacketBudget
from .manager import ConnectionLimits, PacketConnManager
from .memory import MemoryConnection, MemoryConnManager
from .mixed import MixedConnManager
from .uds import UDSAcceptor, UDSConnManager

__all__ = [
    "Carriage",
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
