"""The report: one HTML page on who computes what and when, what it holds and sends, and by which source."""
