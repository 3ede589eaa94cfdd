/* Two harts on a device each: hart 0 reads the clock, hart 1 the UART's line status, for half a second; each alone, then
 * both at once. Lines "device-1" are of a hart alone, "device-2" of it beside the other; whoever waits sits in wfi. */
#include "speed.h"

#define SPELL (TICKS_PER_SECOND / 2)
#define LOOK 64 /* accesses between two looks at the time, which is no device's */
#define HARTS 2

static const char *const names[HARTS] = {"rtc", "uart"};
static struct { u64 accesses, spent, line[6]; } done[HARTS] __attribute__((aligned(64)));
static barrier gate;

void trap(u64 *frame) { print("trap at %lx\n", frame[0]), finish(2); }

static void hammer(u64 hart)
{
    u64 accesses = 0, start = ticks(), now;
    do {
        if (hart)
            for (u32 i = 0; i < LOOK; i++)
                (void)UART(LSR);
        else
            for (u32 i = 0; i < LOOK; i++)
                (void)RTC_TIME_LOW;
        accesses += LOOK;
    } while ((now = ticks()) - start < SPELL);
    done[hart].accesses = accesses, done[hart].spent = now - start;
}

static void line(u64 hart, u32 together)
{
    print("%s-%u %lu %lu\n", names[hart], together, done[hart].accesses, done[hart].spent);
}

static void sleep_until_called(u64 hart)
{
    while (!(csr_read(mip) & 1 << SOFTWARE))
        wfi();
    CLINT_MSIP(hart) = 0;
}

void main(u64 hart, const void *tree)
{
    (void)tree;
    csr_write(mie, 1 << SOFTWARE);
    if (hart >= HARTS)
        return;
    if (hart) {
        sleep_until_called(hart);
        hammer(hart);
        CLINT_MSIP(0) = 1;
    } else {
        hammer(hart);
        line(hart, 1);
        CLINT_MSIP(1) = 1;
        sleep_until_called(hart);
        line(1, 1);
    }
    meet(&gate, HARTS);
    hammer(hart);
    meet(&gate, HARTS);
    if (hart)
        return;
    line(0, 2);
    line(1, 2);
    finish(0);
}
