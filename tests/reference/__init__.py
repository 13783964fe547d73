"""Slow and obvious implementations, written from the papers, that the fast ones are held to."""
