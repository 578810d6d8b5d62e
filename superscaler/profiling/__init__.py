"""Profiling: the machine at hand is measured, and becomes a cluster and a database of times."""
