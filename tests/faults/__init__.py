"""Two trials by chance: `fuzz` edits every file a user may have, `soak` ends and starves a run."""
