"""What checkpoints look like on disk: ours, FlexBERT's, Hugging Face's, a release's."""
