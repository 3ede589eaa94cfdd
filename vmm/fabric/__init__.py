"""What connects devices to a guest and to the host: memory, bus, interrupt wires, clock, I/O thread, doorbells."""
