"""From the order of documents to packed, masked rows, one stage a file."""
