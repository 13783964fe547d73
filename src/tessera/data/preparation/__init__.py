"""What preparing text shares: reading raw documents, writing shards. Imports no torch."""
