"""An in-memory duplex transport for asyncio."""
