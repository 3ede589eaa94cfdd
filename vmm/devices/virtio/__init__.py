"""Virtio 1.2 devices (OASIS CSD01): one lock a device, transports that only decode, queues served on an I/O thread."""
