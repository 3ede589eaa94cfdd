/* The demo guest: every hart hammers every device for two seconds, watches the others, and the first hart prints what
 * they saw. Machine mode, no firmware, no operating system: `vmm-run demo`, or any `virt` board with `-bios demo.elf`.
 */
#include "board.h"

#define SECONDS 2

/* What a hart did and what it found wrong. Each has lines of cache of its own. */
enum work { UART_WORK, RTC_WORK, CLINT_WORK, PLIC_WORK, LOCK_WORK, WORKS };
static struct hart {
    u64 done[WORKS];
    u64 ipis_sent, ipis_taken, timer_ticks, uart_interrupts;
    u64 seed, checksum; /* filled by this hart, recomputed by its neighbour */
} __attribute__((aligned(64))) harts[MAX_HARTS];

enum check { SCRATCH, LINE_STATUS, RTC_ORDER, MTIME_ORDER, PRIORITY, CLAIM, LOCKED_SUM, ATOMIC_SUM, IPIS, TIMERS,
             NEIGHBOUR, CHECKS };
static const char *const meaning[CHECKS] = {
    [SCRATCH] = "uart   each scratch byte was read back by the hart that wrote it",
    [LINE_STATUS] = "uart   the transmitter's status was never nonsense",
    [RTC_ORDER] = "rtc    the clock never ran backwards, whoever read it",
    [MTIME_ORDER] = "clint  mtime and rdtime agreed on every hart",
    [PRIORITY] = "plic   priorities and enables kept what was written",
    [CLAIM] = "plic   each interrupt was claimed once, by one hart",
    [LOCKED_SUM] = "memory additions under a spinlock add up",
    [ATOMIC_SUM] = "memory amoadd and lr/sc add up",
    [IPIS] = "clint  every hart got its neighbour's interrupts",
    [TIMERS] = "clint  every hart's timer ticked",
    [NEIGHBOUR] = "harts  each recomputed its neighbour's checksum",
};
static u64 wrong[CHECKS];

static u32 count;            /* harts in the device tree */
static barrier gate;
static u64 deadline;         /* in ticks: the end of the hammering */
static spinlock uart_lock;   /* guards the UART's registers and `uart_raised` */
static spinlock rtc_lock;    /* guards the RTC's latch and `rtc_last` */
static spinlock sum_lock;    /* guards `locked_sum` */
static u64 rtc_last, locked_sum, amo_sum, lrsc_sum;
static u64 uart_raised, uart_claimed;

static void expect(int good, enum check check)
{
    if (!good)
        __atomic_fetch_add(&wrong[check], 1, __ATOMIC_RELAXED);
}

void trap(u64 *frame)
{
    u64 hart = csr_read(mhartid), cause = csr_read(mcause);
    struct hart *self = &harts[hart];
    if (cause == (INTERRUPT | SOFTWARE)) {
        CLINT_MSIP(hart) = 0;
        self->ipis_taken++;
    } else if (cause == (INTERRUPT | TIMER)) {
        CLINT_MTIMECMP(hart) = ticks() + TICKS_PER_SECOND / 1000;
        self->timer_ticks++;
    } else if (cause == (INTERRUPT | EXTERNAL)) {
        u32 source = PLIC_CLAIM(PLIC_MACHINE(hart));
        if (!source)
            return; /* another hart was faster */
        expect(source == UART_SOURCE, CLAIM);
        UART(IER) = 0; /* the line falls before the source is completed */
        self->uart_interrupts++;
        PLIC_CLAIM(PLIC_MACHINE(hart)) = source;
        __atomic_fetch_add(&uart_claimed, 1, __ATOMIC_RELEASE);
    } else {
        print("hart %lu: unexpected trap, cause %lx at %lx, value %lx\n", hart, cause, frame[0], csr_read(mtval));
        finish(2);
    }
}

static void hammer_uart(u64 hart, u64 round)
{
    u8 pattern = hart << 4 ^ round;
    lock(&uart_lock);
    UART(SCR) = pattern;
    u8 status = UART(LSR);
    expect(UART(SCR) == pattern, SCRATCH);
    unlock(&uart_lock);
    expect(status != 0xff && (UART(LSR) & LSR_THRE), LINE_STATUS);
}

static void hammer_rtc(void)
{
    lock(&rtc_lock);
    u64 low = RTC_TIME_LOW, now = (u64)RTC_TIME_HIGH << 32 | low;
    expect(now >= rtc_last, RTC_ORDER);
    rtc_last = now;
    unlock(&rtc_lock);
}

static void hammer_clint(u64 hart)
{
    u64 before = ticks(), middle = CLINT_MTIME, after = ticks();
    expect(before <= middle && middle <= after, MTIME_ORDER);
    u64 neighbour = hart + 1 < count ? hart + 1 : 0;
    if (!CLINT_MSIP(neighbour)) {
        harts[hart].ipis_sent++;
        CLINT_MSIP(neighbour) = 1;
    }
}

/* Sources above the UART's are free: each hart has one of its own to set up, in words that it shares with nobody. */
static void hammer_plic(u64 hart, u64 round)
{
    u32 source = 32 + hart, priority = round & 7, enable = 1u << (round & 31);
    PLIC_PRIORITY(source) = priority;
    PLIC_ENABLE(PLIC_SUPERVISOR(hart), 1) = enable;
    expect(PLIC_PRIORITY(source) == priority && PLIC_ENABLE(PLIC_SUPERVISOR(hart), 1) == enable, PRIORITY);
}

/* Asks the UART for its "transmitter empty" interrupt: its line rises, and all harts race for it. */
static void raise_uart(void)
{
    lock(&uart_lock);
    u64 raised = ++uart_raised;
    UART(IER) = IER_THRI;
    u64 patience = ticks() + TICKS_PER_SECOND;
    while (__atomic_load_n(&uart_claimed, __ATOMIC_ACQUIRE) < raised && ticks() < patience)
        ;
    expect(__atomic_load_n(&uart_claimed, __ATOMIC_ACQUIRE) == raised, CLAIM);
    unlock(&uart_lock);
}

static void hammer_locks(void)
{
    lock(&sum_lock);
    locked_sum++;
    unlock(&sum_lock);
    __atomic_fetch_add(&amo_sum, 1, __ATOMIC_RELAXED);
    u64 failed;
    do {
        u64 value;
        asm volatile("lr.d %0, %2\n\taddi %0, %0, 1\n\tsc.d %1, %0, %2"
                     : "=&r"(value), "=&r"(failed), "+A"(lrsc_sum)::"memory");
    } while (failed);
}

static u64 checksum(u64 seed)
{
    u64 sum = seed;
    for (int i = 0; i < 1000; i++) {
        sum ^= sum << 13;
        sum ^= sum >> 7;
        sum ^= sum << 17;
    }
    return sum;
}

static void hammer(u64 hart)
{
    struct hart *self = &harts[hart];
    u64 round = 0;
    for (; ticks() < deadline; round++) {
        hammer_uart(hart, round);
        hammer_rtc();
        hammer_clint(hart);
        hammer_plic(hart, round);
        hammer_locks();
        if (round % 64 == 0)
            raise_uart();
    }
    self->done[UART_WORK] = round * 4;
    self->done[RTC_WORK] = round * 2;
    self->done[CLINT_WORK] = round * 2 + self->ipis_sent;
    self->done[PLIC_WORK] = round * 4;
    self->done[LOCK_WORK] = round;
    self->seed = hart << 32 | round;
    self->checksum = checksum(self->seed);
}

/* The date of a day counted from 1970-01-01, in the Gregorian calendar, by years that start in March. */
static void print_date(u64 day)
{
    day += 719468; /* since 0000-03-01 */
    u64 era = day / 146097, of_era = day % 146097;
    u64 year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    u64 of_year = of_era - (365 * year + year / 4 - year / 100), month = (5 * of_year + 2) / 153;
    print("%lu-%02lu-%02lu", 400 * era + year + (month >= 10), month < 10 ? month + 3 : month - 9,
          of_year - (153 * month + 2) / 5 + 1);
}

static void introduce(const void *tree)
{
    const u8 *memory = tree_property(tree, "memory@", "reg");
    u64 megabytes = ((u64)big_endian(memory + 8) << 32 | big_endian(memory + 12)) >> 20;
    u64 low = RTC_TIME_LOW, now = ((u64)RTC_TIME_HIGH << 32 | low) / 1000000000;
    print("\nA bare-metal guest in machine mode on the board '%s'\n\n", (const char *)tree_property(tree, "", "model"));
    print("  harts   %u x %s\n", count, (const char *)tree_property(tree, "cpu@", "riscv,isa"));
    print("  memory  %'lu MiB\n  clock   ", megabytes);
    print_date(now / 86400);
    print(" %02lu:%02lu:%02lu UTC\n\n", now / 3600 % 24, now / 60 % 60, now % 60);
}

static void summarise(u64 spent)
{
    static const char *const title[WORKS] = {"uart", "rtc", "clint", "plic", "locks"};
    u64 total[WORKS] = {0}, accesses = 0, interrupts = 0;
    print("  hart");
    for (int i = 0; i < WORKS; i++)
        print("%10s", title[i]);
    print("  interrupts  accesses/s\n");
    for (u64 i = 0; i < count; i++) {
        struct hart *it = &harts[i];
        u64 taken = it->ipis_taken + it->timer_ticks + it->uart_interrupts, mine = 0;
        print("  %4lu", i);
        for (int k = 0; k < WORKS; k++) {
            print("%'10lu", it->done[k]);
            total[k] += it->done[k];
            mine += k == LOCK_WORK ? 0 : it->done[k];
        }
        print("%'12lu%'12lu\n", taken, mine * TICKS_PER_SECOND / spent);
        interrupts += taken;
        accesses += mine;
    }
    print("   all");
    for (int k = 0; k < WORKS; k++)
        print("%'10lu", total[k]);
    print("%'12lu%'12lu\n\n", interrupts, accesses * TICKS_PER_SECOND / spent);

    expect(locked_sum == total[LOCK_WORK], LOCKED_SUM);
    expect(amo_sum == total[LOCK_WORK] && lrsc_sum == total[LOCK_WORK], ATOMIC_SUM);
    u64 bad = 0;
    for (int i = 0; i < CHECKS; i++) {
        if (wrong[i])
            print("  WRONG %s (%'lu times)\n", meaning[i], wrong[i]);
        else
            print("  ok    %s\n", meaning[i]);
        bad += wrong[i];
    }
    print(bad ? "\nFAIL: powering off\n" : "\nPASS: powering off\n");
    finish(bad != 0);
}

void main(u64 hart, const void *tree)
{
    static u32 ready;
    if (hart == 0) {
        count = tree_nodes(tree, "cpu@");
        introduce(tree);
        PLIC_PRIORITY(UART_SOURCE) = 1;
        __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
    }
    while (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE))
        ;
    PLIC_THRESHOLD(PLIC_MACHINE(hart)) = 0;
    PLIC_ENABLE(PLIC_MACHINE(hart), 0) = 1u << UART_SOURCE;
    CLINT_MTIMECMP(hart) = ticks() + TICKS_PER_SECOND / 1000;
    meet(&gate, count);
    if (hart == 0) {
        print("All harts are up; hammering uart, rtc, clint, plic and memory for %u seconds ...\n\n", SECONDS);
        deadline = ticks() + SECONDS * TICKS_PER_SECOND;
    }
    csr_write(mie, 1 << SOFTWARE | 1 << TIMER | 1 << EXTERNAL);
    csr_set(mstatus, MSTATUS_MIE);
    meet(&gate, count);

    u64 start = ticks();
    hammer(hart);
    u64 spent = ticks() - start;
    meet(&gate, count);

    u64 other = hart ? hart - 1 : count - 1;
    expect(checksum(harts[other].seed) == harts[other].checksum, NEIGHBOUR);
    expect(harts[hart].timer_ticks > 0, TIMERS);
    for (u64 patience = ticks() + TICKS_PER_SECOND; harts[hart].ipis_taken == 0 && ticks() < patience;)
        ;
    expect(harts[hart].ipis_taken > 0 && harts[hart].ipis_taken <= harts[other].ipis_sent, IPIS);
    csr_clear(mstatus, MSTATUS_MIE);
    meet(&gate, count);
    if (hart == 0)
        summarise(spent);
}
