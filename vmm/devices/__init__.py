"""Device models. Each takes its own lock at its doors and is given its wires, clock, memory and host services."""
