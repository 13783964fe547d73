"""Which files an input has, and records out of files of every format."""
