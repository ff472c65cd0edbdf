"""Benchmarks: one file a claim; see README.md beside this file."""
