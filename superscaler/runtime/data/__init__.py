"""Data of training and inference: sources of samples, their order, and the batches each rank reads of them."""

from superscaler.runtime.data.batches import Batches, batch_shapes
from superscaler.runtime.data.opening import open_data
from superscaler.runtime.data.source import Source
from superscaler.runtime.data.stream import Stream
from superscaler.runtime.data.token_source import TokenFormat

__all__ = ["Batches", "Source", "Stream", "TokenFormat", "batch_shapes", "open_data"]
