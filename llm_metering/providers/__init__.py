"""Reading the usage in providers' answers, whole or streamed, decoded or as bytes. No SDK is imported."""

from __future__ import annotations

from .answers import read_response
from .batches import BatchResult, read_batch
from .streams import StreamTally, read_stream
from .wire import WireTally

__all__ = ["BatchResult", "StreamTally", "WireTally", "read_batch", "read_response", "read_stream"]
