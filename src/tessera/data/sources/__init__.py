"""Where documents come from: `source.py` is the seam, the others are MDS shards behind it."""
