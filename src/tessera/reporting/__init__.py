"""A run's log, read into plain tables and drawn as curves."""
