/* Accesses to device registers, each of which leaves the guest: of one hart, then of all harts at once. */
#include "speed.h"

#define ACCESSES 50000ul

static u32 harts;
static barrier gate;

void trap(u64 *frame) { print("trap at %lx\n", frame[0]), finish(2); }

static void read_lsr(u64 hart)
{
    (void)hart;
    for (u64 i = 0; i < ACCESSES; i++)
        (void)UART(LSR);
}

static void write_scr(u64 hart)
{
    for (u64 i = 0; i < ACCESSES; i++)
        UART(SCR) = hart;
}

static void read_rtc(u64 hart)
{
    (void)hart;
    for (u64 i = 0; i < ACCESSES; i++)
        (void)RTC_TIME_LOW;
}

static void read_mtime(u64 hart)
{
    (void)hart;
    for (u64 i = 0; i < ACCESSES; i++)
        (void)CLINT_MTIME;
}

static void claim_nothing(u64 hart)
{
    for (u64 i = 0; i < ACCESSES; i++)
        (void)PLIC_CLAIM(PLIC_MACHINE(hart));
}

static const struct { const char *name; void (*part)(u64); } kinds[] = {
    {"uart-lsr-read", read_lsr}, {"uart-scr-write", write_scr}, {"rtc-read", read_rtc},
    {"clint-mtime-read", read_mtime}, {"plic-claim", claim_nothing},
};

void main(u64 hart, const void *tree)
{
    harts = tree_nodes(tree, "cpu@");
    csr_write(mie, 1 << SOFTWARE);
    if (hart) {
        while (!(csr_read(mip) & 1 << SOFTWARE))
            wfi();
        CLINT_MSIP(hart) = 0;
    }
    for (u64 i = 0; hart == 0 && i < sizeof kinds / sizeof *kinds; i++) {
        u64 start = ticks();
        kinds[i].part(0);
        print("%s-1 %lu %lu\n", kinds[i].name, ACCESSES, ticks() - start);
    }
    for (u32 other = 1; hart == 0 && other < harts; other++)
        CLINT_MSIP(other) = 1;
    for (u64 i = 0; harts > 1 && i < sizeof kinds / sizeof *kinds; i++) {
        meet(&gate, harts);
        u64 start = ticks();
        kinds[i].part(hart);
        meet(&gate, harts);
        u64 spent = ticks() - start;
        if (hart == 0)
            print("%s-%u %lu %lu\n", kinds[i].name, harts, ACCESSES * harts, spent);
        meet(&gate, harts);
    }
    if (hart == 0)
        finish(0);
}
