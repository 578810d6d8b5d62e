"""The simulator: how long a plan's programs take on its cluster, who waits for whom, and what fills the memory."""
