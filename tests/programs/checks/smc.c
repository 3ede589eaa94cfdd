/* Code that is written, run, changed and run again, with fence.i between (unpriv. spec, "Zifencei"): by the hart itself,
 * in its own page, over pages, in mixed lengths, and by another hart. */
#include "check.h"

#define FENCE_I() asm volatile("fence.i" ::: "memory")
typedef u64 function(u64);

static u32 pages[4 * 1024] __attribute__((aligned(4096)));

#define RET 0x00008067u
static u32 li_a0(u32 value) { return value << 20 | 0x513; }    /* addi a0, zero, value */
static u32 addi_a0(u32 value) { return value << 20 | 0x50513; } /* addi a0, a0, value */
static u64 call(const void *code, u64 value) { return ((function *)code)(value); }

static void patch_loop(void)
{
    int good = 1;
    for (u32 i = 0; i < 1000; i++) {
        pages[0] = li_a0(i & 0x7ff);
        pages[1] = RET;
        FENCE_I();
        good &= call(pages, 0) == (i & 0x7ff);
    }
    check(good, "1000 rewritten functions each return their own value");
}

static void hot_then_patched(void)
{
    pages[0] = addi_a0(1);
    pages[1] = RET;
    FENCE_I();
    u64 value = 0;
    for (int i = 0; i < 20000; i++)
        value = call(pages, value);
    pages[0] = addi_a0(3);
    FENCE_I();
    for (int i = 0; i < 20000; i++)
        value = call(pages, value);
    check_equal(value, 80000, "a hot function is patched");
}

static void data_beside_code(void)
{
    pages[0] = addi_a0(1);
    pages[1] = RET;
    FENCE_I();
    volatile u32 *data = &pages[512];
    u64 value = 0;
    *data = 0;
    for (int i = 0; i < 20000; i++) {
        value = call(pages, value);
        *data += 2;
    }
    check(value == 20000 && *data == 40000, "stores beside code in its page harm neither");
}

static void over_pages(void)
{
    u32 *code = &pages[1022]; /* its last two words are in the next page */
    int good = 1;
    for (u32 i = 1; i < 100; i++) {
        code[0] = li_a0(i);
        code[1] = addi_a0(i);
        code[2] = addi_a0(i);
        code[3] = RET;
        FENCE_I();
        good &= call(code, 0) == 3 * i;
        code[2] = addi_a0(0);
        FENCE_I();
        good &= call(code, 0) == 2 * i;
    }
    check(good, "a function over two pages, patched in the second");

    unsigned short *half = (unsigned short *)&pages[2048] - 1; /* an instruction over two pages */
    for (u32 i = 1; i < 100; i++) {
        u32 instruction = li_a0(i);
        half[0] = instruction;
        half[1] = instruction >> 16;
        half[2] = 0x8082; /* c.jr ra */
        FENCE_I();
        good &= call(half, 0) == i;
        half[1] = li_a0(i + 100) >> 16;
        FENCE_I();
        good &= call(half, 0) == i + 100;
    }
    check(good, "an instruction over two pages, patched in its second half");
}

static void mixed_lengths(void)
{
    unsigned short *code = (unsigned short *)pages;
    int good = 1;
    for (int i = 0; i < 100; i++) {
        code[0] = 0x4505; /* c.li a0, 1 */
        code[1] = 0x0509; /* c.addi a0, 2 */
        code[2] = 0x8082;
        FENCE_I();
        good &= call(code, 0) == 3;
        pages[0] = li_a0(77);
        FENCE_I();
        good &= call(code, 0) == 77;
    }
    check(good, "two short instructions turn into one long one and back");
}

/* A function that patches what comes right behind it in its own page, straight on. */
static void ahead(void)
{
    u64 value;
    asm volatile("la t0, 1f\n"
                 "li t1, 0x02a00513\n" /* addi a0, zero, 42 */
                 "sw t1, 0(t0)\n"
                 "fence.i\n"
                 ".option push\n.option norvc\n"
                 "1: addi a0, zero, 7\n"
                 ".option pop\n"
                 "mv %0, a0"
                 : "=r"(value)::"t0", "t1", "a0", "memory");
    check_equal(value, 42, "an instruction just ahead is patched");
}

static void copied(void)
{
    static const u32 body[] = {0x00150513, 0x00151513, RET}; /* addi a0, a0, 1; slli a0, a0, 1 */
    int good = 1;
    for (int i = 0; i < 1000; i++) {
        u32 *code = &pages[(i * 7) & 0xfff & ~3];
        for (int k = 0; k < 3; k++)
            code[k] = body[k];
        FENCE_I();
        good &= call(code, i) == 2ul * (i + 1);
        code[0] = code[1] = code[2] = 0;
    }
    check(good, "code copied to 1000 places runs there");
}

/* Another hart runs what this one writes: message by memory, fence.i on the one that runs it. */
static u32 round_written, round_run;
static u64 answer;

static void other_hart(void)
{
    for (u32 round = 1; round <= 1000; round++) {
        while (__atomic_load_n(&round_written, __ATOMIC_ACQUIRE) != round)
            ;
        FENCE_I();
        answer = call(&pages[3 * 1024], round);
        __atomic_store_n(&round_run, round, __ATOMIC_RELEASE);
    }
}

static void across_harts(void)
{
    int good = 1;
    for (u32 round = 1; round <= 1000; round++) {
        pages[3 * 1024] = addi_a0(round & 0x3ff);
        pages[3 * 1024 + 1] = RET;
        __atomic_store_n(&round_written, round, __ATOMIC_RELEASE);
        while (__atomic_load_n(&round_run, __ATOMIC_ACQUIRE) != round)
            ;
        good &= answer == round + (round & 0x3ff);
    }
    check(good, "another hart runs 1000 functions as they are written");
}

void main(u64 hart, const void *tree)
{
    u32 harts = tree_nodes(tree, "cpu@");
    if (hart == 1)
        other_hart();
    if (hart)
        return;
    patch_loop();
    hot_then_patched();
    data_beside_code();
    over_pages();
    mixed_lengths();
    ahead();
    copied();
    if (harts > 1)
        across_harts();
    report();
}
