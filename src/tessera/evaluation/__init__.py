"""What a trained encoder is worth: masked-LM loss per source, fine-tuning tasks."""
