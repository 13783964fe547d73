"""Optimizers with decay groups, and schedules as pure functions of tokens."""
