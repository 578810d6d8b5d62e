"""Bucket: sums over devices that travel together, in memory they share from the first that is put in until the update.

Gradients are put into buckets in the order in which a program makes them, those of one dtype and one mesh axis. So what
runs a program and what predicts its memory come to the same buckets.
"""

BUCKET_BYTES = 25 * 2**20
"""The most a bucket holds; what is as large by itself travels alone, in the memory it was made in."""

JOINED_BYTES = {"cpu": 2**20, "cuda": 25 * 2**20}
"""Up to how many bytes small tensors are joined that lie in no bucket; a larger one travels alone, uncopied.

By type of device: where copies are dear and messages cheap, few are joined.
"""


def travels_alone(num_bytes: int) -> bool:
    """Whether a tensor is put into no bucket."""
    return num_bytes >= BUCKET_BYTES


def has_room(filled_bytes: int, num_bytes: int) -> bool:
    """Whether a tensor still goes into a bucket."""
    return filled_bytes + num_bytes <= BUCKET_BYTES
