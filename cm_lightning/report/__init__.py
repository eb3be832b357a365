"""Comparison of finished runs: read from their own files, written as tables, curves and pictures."""
