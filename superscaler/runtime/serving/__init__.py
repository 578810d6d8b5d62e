"""Serving: requests come and go, and each step of the engine runs one batch of their tokens."""
