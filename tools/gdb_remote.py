"""QEMU as a debugger sees it: a client of its gdb stub, over a socket in a temporary directory.

Only what a comparison needs of the protocol (GDB manual, "Remote Protocol"), and of QEMU's monitor behind it.
"""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from vmm.errors import HostError

_STARTS_WITHIN = 20.0  # seconds
_ANSWERS_WITHIN = 120.0
_XLEN = 8


class Stub:
    """A QEMU of one hart, stopped at its reset vector. Numbers of registers are the stub's own, found by name."""

    def __init__(self, command: Sequence[str]) -> None:
        self._directory = tempfile.TemporaryDirectory()
        path = Path(self._directory.name, "gdb")
        socket_options = f"socket,id=gdb,path={path},server=on,wait=off"
        self._complaints = Path(self._directory.name, "stderr")
        with open(self._complaints, "wb") as complaints:
            self._process = subprocess.Popen(
                [*command, "-S", "-chardev", socket_options, "-gdb", "chardev:gdb"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
            )
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_ANSWERS_WITHIN)
        self._buffer = b""
        self._acknowledges = True
        try:
            self._connect(path)
            self.ask("QStartNoAckMode")
            self._acknowledges = False
            self.ask("qSupported:xmlRegisters=riscv")
            self.numbers = self._register_numbers()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()

    def _connect(self, path: Path) -> None:
        deadline = time.monotonic() + _STARTS_WITHIN
        while True:
            try:
                self._socket.connect(str(path))
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise HostError(f"QEMU did not start: {self._complaint()}") from None
                time.sleep(0.01)

    def _complaint(self) -> str:
        self._process.kill()
        self._process.wait()
        return " ".join(self._complaints.read_text(errors="replace").split()) or "it says nothing"

    # -- packets ------------------------------------------------------------------------------------------------------

    def ask(self, request: str) -> str:
        """The answer to a request; HostError if the stub refuses it."""
        self._send(request)
        answer = self._receive()
        if re.fullmatch(r"E\d\d", answer):
            raise HostError(f"QEMU's gdb stub answers {answer} to {request!r}")
        return answer

    def _send(self, request: str) -> None:
        data = request.encode()
        try:
            self._socket.sendall(b"$%s#%02x" % (data, sum(data) & 0xFF))
        except OSError:
            raise HostError(f"QEMU is gone: {self._complaint()}") from None

    def _receive(self) -> str:
        while not (m := re.search(rb"\$([^#]*)#..", self._buffer, re.DOTALL)):
            try:
                more = self._socket.recv(1 << 16)
            except TimeoutError:
                raise HostError(f"QEMU's gdb stub does not answer within {_ANSWERS_WITHIN:g} s") from None
            except OSError:
                more = b""
            if not more:
                raise HostError(f"QEMU is gone: {self._complaint()}")
            self._buffer += more
        self._buffer = self._buffer[m.end() :]
        if self._acknowledges:
            self._socket.sendall(b"+")
        # '}' takes the next byte out of the alphabet of the protocol
        return re.sub(rb"\}(.)", lambda e: bytes([e[1][0] ^ 0x20]), m[1], flags=re.DOTALL).decode("latin-1")

    def _register_numbers(self) -> dict[str, int]:
        """Numbers by name, from the target's description: in order, unless one is given."""
        numbers: dict[str, int] = {}
        following = 0
        target = self._feature("target.xml")
        for annex in re.findall(r'<xi:include href="([^"]+)"', target):
            for register in re.findall(r"<reg\b[^>]*>", self._feature(annex)):
                attributes = dict(re.findall(r'(\w+)="([^"]*)"', register))
                following = int(attributes.get("regnum", following))
                numbers[attributes["name"]] = following
                following += 1
        return numbers

    def _feature(self, annex: str) -> str:
        text = ""
        while True:
            answer = self.ask(f"qXfer:features:read:{annex}:{len(text):x},f00")
            text += answer[1:]
            if answer[:1] != "m":
                return text

    # -- the hart -----------------------------------------------------------------------------------------------------

    def registers(self) -> tuple[int, ...]:
        """x0 to x31, and pc."""
        data = bytes.fromhex(self.ask("g"))
        return tuple(int.from_bytes(data[at : at + _XLEN], "little") for at in range(0, 33 * _XLEN, _XLEN))

    def register(self, name: str) -> int | None:
        """A register by the name that the stub has for it; None if it has none."""
        if name not in self.numbers:
            return None
        try:
            return int.from_bytes(bytes.fromhex(self.ask(f"p{self.numbers[name]:x}")), "little")
        except HostError:
            return None

    def read(self, address: int, size: int) -> bytes:
        """Memory at a virtual address."""
        return bytes.fromhex(self.ask(f"m{address:x},{size:x}"))

    def step(self) -> None:
        """One instruction; or the way into a trap's handler, and no instruction of it."""
        self.ask("s")

    def keep_time_while_stepping(self) -> None:
        """Let interrupts and timers come while single steps are made."""
        self.ask("Qqemu.sstep=1")

    def run_to(self, address: int) -> None:
        """Run on to an address; as soon as it is reached for the first time from here."""
        self.ask(f"Z1,{address:x},4")
        self.ask("c")
        self.ask(f"z1,{address:x},4")

    def run_for(self, seconds: float) -> None:
        self._send("c")
        time.sleep(seconds)
        self._socket.sendall(b"\x03")
        self._receive()

    def monitor(self, command: str) -> str:
        """A command of QEMU's monitor, and what it prints."""
        self._send("qRcmd," + command.encode().hex())
        printed = ""
        while (answer := self._receive()) != "OK":
            if not answer.startswith("O"):
                raise HostError(f"QEMU's monitor answers {answer!r} to {command!r}")
            printed += bytes.fromhex(answer[1:]).decode(errors="replace")
        return printed

    def memory(self, address: int, size: int) -> bytes:
        """Physical memory."""
        path = Path(self._directory.name, "memory")
        self.monitor(f'pmemsave {address:#x} {size:#x} "{path}"')
        return path.read_bytes()


def qemu_command(program: str, arguments: Iterable[str], megabytes: int, cpu: str, shift: int = 0) -> list[str]:
    """One hart of the `virt` board, whose time is the count of its instructions: 2 ** `shift` ns each."""
    return [
        *(program, "-M", "virt", "-smp", "1", "-m", f"{megabytes}M", "-cpu", cpu, "-icount", f"shift={shift}"),
        *("-display", "none", "-serial", "null", "-monitor", "none"),
        *arguments,
    ]
