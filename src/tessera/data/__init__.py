"""Shards of tokenised documents to packed, masked batches, with the state to continue exactly."""
