"""The simulator: whole nodes, their links and their clients in one process, on virtual time, from one seed."""
