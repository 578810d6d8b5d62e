"""Measuring a server from outside: clients that ask, prompts, times of arrival, and the report."""
