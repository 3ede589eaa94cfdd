"""Monitors that take their big lock apart assert "lock held" in helpers one by one, after a crash. Planted: a timer's
door that forgets its lock and calls the helper which drives the outputs.
"""

from __future__ import annotations

from tests.museum.exhibit import Exhibit, lock_report
from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.lockreport import Kind
from vmm.locks import Locking, lockfree
from vmm.testing.fakes import FakeClock, FakeWire


class ForgetfulTimer(GoldfishRtc):
    """An RTC whose timer's door takes no lock"""

    @lockfree("the mistake")
    def alarm_due(self) -> None:
        self._sync()


def check(rtc: type[GoldfishRtc]) -> str | None:
    def run(locking: Locking) -> None:
        locking.make(rtc, "rtc", wire=FakeWire(), clock=FakeClock()).alarm_due()

    return lock_report(Kind.PRIVATE, run)


EXHIBIT = Exhibit(
    "M16",
    "helpers that need a lock were called without it, and only some of them asserted it",
    "assertions of the checked variant",
    ForgetfulTimer,
    GoldfishRtc,
    check,
)
