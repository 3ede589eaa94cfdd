/* How work grows with harts: the same private work on one hart and on all of them, sums in one shared word, and short
 * sections under one spinlock. Sleeping harts sit in wfi. "-1" lines are of one hart, "-N" lines of all N together. */
#include "speed.h"

#define WORK 30000000ul
#define SHARED 2000000ul
#define LOCKED 300000ul

static u32 harts;
static barrier gate;
static u64 sum, locked;
static spinlock guard;
static struct { u64 value, line[7]; } answers[MAX_HARTS] __attribute__((aligned(64)));

void trap(u64 *frame) { print("trap at %lx\n", frame[0]), finish(2); }

static u64 work(void)
{
    u64 value = 1;
    for (u64 i = 0; i < WORK; i++)
        value = scramble(value) + i;
    return value;
}

static void line(const char *name, u32 together, u64 iterations, u64 spent)
{
    print("%s-%u %lu %lu\n", name, together, iterations * together, spent);
}

/* Runs `part` on all harts between two barriers; answers the ticks from first to last. */
static u64 together(u64 hart, void part(u64))
{
    meet(&gate, harts);
    u64 start = ticks();
    part(hart);
    meet(&gate, harts);
    return ticks() - start;
}

static void part_work(u64 hart) { answers[hart].value = work(); }

static void part_sum(u64 hart)
{
    (void)hart;
    for (u64 i = 0; i < SHARED; i++)
        __atomic_fetch_add(&sum, 1, __ATOMIC_RELAXED);
}

static void part_locked(u64 hart)
{
    (void)hart;
    for (u64 i = 0; i < LOCKED; i++) {
        lock(&guard);
        locked++;
        unlock(&guard);
    }
}

void main(u64 hart, const void *tree)
{
    harts = tree_nodes(tree, "cpu@");
    csr_write(mie, 1 << SOFTWARE);
    if (hart) {
        while (!(csr_read(mip) & 1 << SOFTWARE))
            wfi();
        CLINT_MSIP(hart) = 0;
    } else {
        u64 start = ticks();
        answers[0].value = work();
        line("work", 1, WORK, ticks() - start);
        start = ticks();
        part_sum(0);
        line("amoadd", 1, SHARED, ticks() - start);
        start = ticks();
        part_locked(0);
        line("spinlock", 1, LOCKED, ticks() - start);
        for (u32 other = 1; other < harts; other++)
            CLINT_MSIP(other) = 1;
    }
    u64 right = 1;
    if (harts > 1) {
        u64 work_spent = together(hart, part_work);
        u64 sum_spent = together(hart, part_sum);
        u64 locked_spent = together(hart, part_locked);
        if (hart)
            return;
        line("work", harts, WORK, work_spent);
        line("amoadd", harts, SHARED, sum_spent);
        line("spinlock", harts, LOCKED, locked_spent);
        for (u32 other = 1; other < harts; other++)
            right &= answers[other].value == answers[0].value;
        right &= sum == SHARED * (harts + 1) && locked == LOCKED * (harts + 1);
    }
    if (!right)
        print("FAIL smp: sums differ\n");
    finish(!right);
}
