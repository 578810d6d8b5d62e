"""Answers of a prescribed form: a grammar says which tokens may follow."""
