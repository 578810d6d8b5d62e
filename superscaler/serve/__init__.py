"""Serving: a traced language model becomes a program over a flat list of tokens and a cache."""

from superscaler.serve.lower import Servable, lower

__all__ = ["Servable", "lower"]
