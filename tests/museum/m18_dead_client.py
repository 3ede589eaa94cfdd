"""QEMU's issues 807 and 2819: a VNC client that stopped reading, or went away, froze the machine. Its locks are shaped
like those of any client of a device, so the serial port stands for the display. Planted: a line that writes to its
client from inside the device's lock.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from tests.museum.exhibit import Exhibit
from vmm.devices.uart16550 import Uart16550
from vmm.host.chardev import Chardev, StreamChardev
from vmm.locks import Locking
from vmm.testing.fakes import FakeClock, FakeIoThread, FakeWire

THR = 0


class DirectLine(Chardev):
    """A line that writes to its client on the VCPU's thread, with the device's lock held"""

    def __init__(self, name: str, home: FakeIoThread, *, output_fd: int) -> None:
        super().__init__(name, home)
        self._fd = output_fd
        self.writing = threading.Event()

    def _deliver(self, data: bytes) -> None:
        self.writing.set()
        os.write(self._fd, data)


def check(line: Any) -> str | None:
    """Integration test: a client reads nothing, and then dies, while the guest goes on printing."""
    ours, client = socket.socketpair()
    home = FakeIoThread()
    with ours, client:
        _fill(ours)
        chardev = line("client", home, output_fd=ours.fileno())
        device = Locking().make(
            Uart16550, "uart", wire=FakeWire(), clock=FakeClock(home), line=chardev, input_hz=3_686_400
        )
        chardev.connect(device)
        crash: list[BaseException] = []
        # Set when the guest's store is over, or when it has come to a write that nobody will take.
        settled = getattr(chardev, "writing", threading.Event())

        def guest() -> None:
            try:
                device.write(THR, 1, 0x41)
            except BaseException as error:
                crash.append(error)
            settled.set()

        vcpu = threading.Thread(target=guest, name="vcpu0")
        vcpu.start()
        settled.wait()
        holder = device._lock.statistics().holder
        client.close()
        vcpu.join()
        chardev.close()
        home.run()
    if holder:
        return f"{holder} holds uart while it waits for a client that reads nothing"
    return f"the client's death reached the guest: {crash[0]!r}" if crash else None


def _fill(end: socket.socket) -> None:
    try:
        while True:
            end.send(bytes(1 << 16), socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass


EXHIBIT = Exhibit(
    "M18",
    "a display client that stopped reading or went away froze the machine (QEMU 807, 2819)",
    "integration test",
    DirectLine,
    StreamChardev,
    check,
)
