"""From the order of documents to packed, masked rows. `tessera.data` draws the whole pipeline."""
