"""Training on Composer: the only part that knows Composer's names."""
