"""The command line: `tessera check | doctor | import | export | release | merge | ...`."""
