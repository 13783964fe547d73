"""Checkpoints of a run as revisions to publish."""
