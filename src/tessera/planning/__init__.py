"""What a phase will need before it runs: text, memory, hours, disk. Imports no torch."""
