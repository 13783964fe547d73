"""Tessera: end-to-end pretraining of ModernBERT-style encoders."""
