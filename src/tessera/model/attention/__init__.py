"""Attention over packed documents: one call, `attend`, and the backends behind it."""
