"""How a start of a run comes about: what its YAML leaves out, its ranks, the machine it is on."""
