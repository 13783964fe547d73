"""Training a tokenizer on text in any script, and how well one fits."""
