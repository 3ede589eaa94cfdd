"""The seeded scheduler: device code on real threads, one at a time, in an order that a seed decides.

    def program(s: Scheduler) -> None:
        locking = s.locking()
        rtc = locking.make(GoldfishRtc, "rtc", wire=ScheduledWire(s, "irq"), clock=ScheduledClock(s))
        s.spawn("vcpu0", rtc.write, 0x08, 4, 1000)
        s.spawn("vcpu1", rtc.write, 0x14, 4, 0)
        s.check(lambda: rtc.read(0x18, 4) == 0)

    result = explore(program, strategy="pct", depth=2, seed=1, schedules=1000)
    print(result.failure or "no schedule fails")

See `docs/locks.md`.
"""

from vmm.testing.schedule.core import Scheduler
from vmm.testing.schedule.explore import Failure, Result, ScheduleError, assert_holds, explore, replay
from vmm.testing.schedule.failures import Kind
from vmm.testing.schedule.trace import Trace

__all__ = ["Failure", "Kind", "Result", "ScheduleError", "Scheduler", "Trace", "assert_holds", "explore", "replay"]
