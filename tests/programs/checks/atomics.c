/* LR/SC and AMOs on one hart for their values, and from all harts at once for their sums. */
#include "check.h"

#define ROUNDS 20000
static u32 harts;
static barrier gate;
static u64 amo_d, lrsc_d, swapped, big, small, locked, bits;
static u32 amo_w, lrsc_w;
static u64 bytes; /* each hart owns one 32-bit half of a word that others change with amoadd.w */
static spinlock guard;

#define LR_D(at) ({ u64 _v; asm volatile("lr.d %0, %1" : "=r"(_v), "+A"(*(at))::"memory"); _v; })
#define SC_D(at, value) ({ u64 _f; asm volatile("sc.d %0, %2, %1" : "=r"(_f), "+A"(*(at)) : "r"((u64)(value)) : "memory"); _f; })
#define AMO(name, at, value) \
    ({ u64 _v; asm volatile(name " %0, %2, %1" : "=r"(_v), "+A"(*(at)) : "r"((u64)(value)) : "memory"); _v; })

static void values(void)
{
    static u64 word;
    static u32 half;
    static const struct { const char *name; u64 from, by, to; } table[] = {
        {"amoswap.d", 5, 7, 7},
        {"amoadd.d", -1ul, 2, 1},
        {"amoxor.d", 0xff00, 0x0ff0, 0xf0f0},
        {"amoand.d", 0xff00, 0x0ff0, 0x0f00},
        {"amoor.d", 0xff00, 0x0ff0, 0xfff0},
        {"amomin.d", -3ul, 2, -3ul},
        {"amomax.d", -3ul, 2, 2},
        {"amominu.d", -3ul, 2, 2},
        {"amomaxu.d", -3ul, 2, -3ul},
    };
    for (u64 i = 0; i < sizeof table / sizeof *table; i++) {
        word = table[i].from;
        u64 old = 0;
        switch (i) {
        case 0: old = AMO("amoswap.d", &word, table[i].by); break;
        case 1: old = AMO("amoadd.d", &word, table[i].by); break;
        case 2: old = AMO("amoxor.d", &word, table[i].by); break;
        case 3: old = AMO("amoand.d", &word, table[i].by); break;
        case 4: old = AMO("amoor.d", &word, table[i].by); break;
        case 5: old = AMO("amomin.d", &word, table[i].by); break;
        case 6: old = AMO("amomax.d", &word, table[i].by); break;
        case 7: old = AMO("amominu.d", &word, table[i].by); break;
        case 8: old = AMO("amomaxu.d", &word, table[i].by); break;
        }
        check(old == table[i].from && word == table[i].to, table[i].name);
    }
    half = 0x80000000;
    check_equal(AMO("amomax.w", &half, 1), 0xffffffff80000000, "amomax.w answers a sign-extended word");
    check_equal(half, 1, "and compares words");
    half = 0x80000000;
    AMO("amomaxu.w", &half, 0x1234567890000000);
    check_equal(half, 0x90000000, "amomaxu.w ignores the upper half of its operand");
    check_equal(AMO("amoadd.w", &half, 0x70000000), 0xffffffff90000000, "amoadd.w answers the old word");
    check_equal(half, 0, "and wraps");
}

static void reservations(void)
{
    static u64 word[64] __attribute__((aligned(64)));
    word[0] = 5;
    check_equal(SC_D(&word[0], 6), 1, "sc without lr fails with 1");
    check_equal(word[0], 5, "and stores nothing");
    u64 failed = 1;
    for (int tries = 0; failed && tries < 100; tries++) {
        LR_D(&word[0]);
        failed = SC_D(&word[0], 6);
    }
    check(!failed && word[0] == 6, "lr and sc store");
    check_equal(SC_D(&word[0], 7), 1, "a second sc fails");
    LR_D(&word[0]);
    check_equal(SC_D(&word[32], 9), 1, "sc to another place fails");
    check_equal(SC_D(&word[0], 9), 1, "and uses the reservation up");
    u32 low = 0x80000000;
    u64 value;
    asm volatile("lr.w %0, %1" : "=r"(value), "+A"(low)::"memory");
    check_equal(value, 0xffffffff80000000, "lr.w extends the sign");
}

static void contend(u64 hart)
{
    for (int i = 0; i < ROUNDS; i++) {
        AMO("amoadd.d", &amo_d, 3);
        AMO("amoadd.w", &amo_w, 1);
        AMO("amoadd.w", (u32 *)&bytes + (hart & 1), 1);
        u64 failed, value;
        asm volatile("1: lr.d %0, %2\n\taddi %0, %0, 1\n\tsc.d %1, %0, %2\n\tbnez %1, 1b"
                     : "=&r"(value), "=&r"(failed), "+A"(lrsc_d)::"memory");
        asm volatile("1: lr.w.aq %0, %2\n\taddi %0, %0, 1\n\tsc.w.rl %1, %0, %2\n\tbnez %1, 1b"
                     : "=&r"(value), "=&r"(failed), "+A"(lrsc_w)::"memory");
        AMO("amomaxu.d", &big, hart * ROUNDS + i);
        AMO("amomin.d", &small, -(hart * ROUNDS + i));
        AMO("amoxor.d", &bits, 1ul << (hart & 63));
        lock(&guard);
        locked++;
        unlock(&guard);
    }
    /* A relay of values: what each hart swaps in, another swaps out; nothing is lost and nothing doubled. */
    u64 sum = 0;
    for (u64 i = 1; i <= ROUNDS; i++)
        sum += i - AMO("amoswap.d.aqrl", &swapped, i);
    static u64 relayed;
    AMO("amoadd.d", &relayed, sum);
    meet(&gate, harts);
    if (hart)
        return;
    u64 all = harts * (u64)ROUNDS;
    check_equal(amo_d, 3 * all, "amoadd.d of all harts adds up");
    check_equal(amo_w, all, "amoadd.w too");
    check_equal((bytes & 0xffffffff) + (bytes >> 32), all, "amoadd.w on the halves of one doubleword");
    check_equal(lrsc_d, all, "lr.d and sc.d too");
    check_equal(lrsc_w, all, "lr.w.aq and sc.w.rl too");
    check_equal(locked, all, "a counter under a spinlock too");
    check_equal(big, all - 1, "amomaxu.d finds the greatest");
    check_equal(small, -(all - 1), "amomin.d the least");
    check_equal(bits, 0, "an even number of amoxor.d leaves nothing");
    check_equal(relayed, swapped, "amoswap.d loses nothing");
    report();
}

void main(u64 hart, const void *tree)
{
    static u32 ready;
    if (hart == 0) {
        harts = tree_nodes(tree, "cpu@");
        values();
        reservations();
        __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
    }
    while (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE))
        ;
    contend(hart);
}
