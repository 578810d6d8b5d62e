"""Speculation: small models or the text itself propose trees of tokens, and the model checks a tree in one pass."""
