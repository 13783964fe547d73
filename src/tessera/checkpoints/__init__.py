"""Checkpoints in and out: ours, FlexBERT's and Hugging Face's."""
