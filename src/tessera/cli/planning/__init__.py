"""Commands for before there is a YAML."""
