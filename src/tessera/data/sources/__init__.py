"""Where documents come from: one seam, and MDS shards behind it."""
