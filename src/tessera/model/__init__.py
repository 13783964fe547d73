"""ModernBERT on flat packed sequences, with Hugging Face's tensor names."""
