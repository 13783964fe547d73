"""What a trained encoder predicts: masked-LM loss per source, filled masks."""
