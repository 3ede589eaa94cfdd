"""The UART between a guest's threads, the I/O thread and a real stream, all at once."""

from __future__ import annotations

import os
import random
import socket
import threading

import pytest

from vmm.devices.uart16550 import Uart16550
from vmm.fabric.clock import Clock
from vmm.fabric.iothread import IoThread
from vmm.host.chardev import StreamChardev
from vmm.locks import Locking
from vmm.testing.fakes import FakeWire

RBR = THR = 0
IER, FCR, LSR, SCR = 1, 2, 5, 7
DR, THRE = 0x01, 0x20


@pytest.fixture(params=["device", "bql"])
def board(request):
    """(UART, the other end of its line, its locking)."""
    locking = Locking(request.param, checked=True)
    io = IoThread("io", around=locking.outside_guest)
    clock = Clock(io)
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)
    line = StreamChardev("serial", io, input_fd=ours.fileno(), output_fd=ours.fileno(), limit=4096)
    uart = locking.make(Uart16550, "uart0", wire=FakeWire(), clock=clock, line=line, input_hz=3_686_400)
    line.connect(uart)
    io.start()
    clock.resume()
    yield uart, theirs, locking
    theirs.close()
    line.close()
    io.stop()
    ours.close()


def run_all(*work) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_guest_that_echoes_loses_no_byte_in_either_direction(board):
    uart, far, locking = board
    text = random.Random(1).randbytes(4_000)
    echoed = bytearray()
    done = threading.Event()

    def echo() -> None:
        uart.write(FCR, 1, 0x81)
        uart.write(IER, 1, 0x03)
        for _ in range(len(text)):
            while not uart.read(LSR, 1) & DR:
                pass
            byte = uart.read(RBR, 1)
            while not uart.read(LSR, 1) & THRE:
                pass
            uart.write(THR, 1, byte)

    def disturb() -> None:
        n = 0
        while not done.is_set():
            uart.write(SCR, 1, n & 0xFF)
            assert uart.read(SCR, 1) == n & 0xFF
            uart.save()
            n += 1

    def collect() -> None:
        while len(echoed) < len(text):
            echoed.extend(far.recv(1 << 16))
        done.set()

    run_all(echo, disturb, collect, lambda: far.sendall(text))
    assert bytes(echoed) == text
    assert locking.checker.reports == []


def test_two_harts_that_wait_for_the_transmitter_keep_each_their_own_order(board):
    uart, far, locking = board
    each = 3000
    turn = threading.Lock()  # a guest's console lock: "is it empty? then write" is one step

    def talk(first: int) -> None:
        for n in range(each):
            while True:
                with turn:
                    if uart.read(LSR, 1) & THRE:
                        uart.write(THR, 1, first | n % 64)
                        break

    heard = bytearray()

    def collect() -> None:
        while len(heard) < 2 * each:
            heard.extend(far.recv(1 << 16))

    run_all(lambda: talk(0x00), lambda: talk(0x80), collect)
    for first in (0x00, 0x80):
        assert [byte & 0x3F for byte in heard if byte & 0x80 == first] == [n % 64 for n in range(each)]
    assert locking.checker.reports == []


def test_a_far_end_that_closes_stops_nothing(board):
    uart, far, locking = board
    far.close()
    for n in range(10_000):
        uart.write(THR, 1, n & 0xFF)
    while not uart.read(LSR, 1) & THRE:
        os.sched_yield()
    assert locking.checker.reports == []
