/* Memory ordering between harts: MP, SB, LB, IRIW, CoRR and 2+2W (unpriv. spec, chapter "RVWMO"). Each shape runs bare,
 * where RVWMO allows its relaxed outcome, and with what forbids it; then one forbidden outcome is a failure. A line says
 * how often each outcome came, as the values read in order; those of 2+2W are the ones that stayed in memory.
 *
 * The four-hart shapes come first: harts 2 and 3 then sleep. */
#include "check.h"

#define BATCHES 24
#define BATCH 512

static struct { u32 x, line[15], y, other_line[15]; } memory[BATCH] __attribute__((aligned(64)));
static u32 seen[BATCH][4];
static struct { u32 at, line[15]; } progress[MAX_HARTS] __attribute__((aligned(64))); /* in a batch, of each hart */

/* The parts are assembly: what a C compiler may not reorder, drop or merge. a0 = &x, a1 = &y, a2 = results. */
#define PART(name, text) \
    asm(".text\n.balign 4\n" #name ": li a3, 1\n" text "\nret\n"); \
    extern void name(u32 *x, u32 *y, u32 *results)

#define X_IS_1 "sw a3, 0(a0)\n"
#define Y_IS_1 "sw a3, 0(a1)\n"
#define READ_X "lw a4, 0(a0)\n"
#define READ_Y "lw a4, 0(a1)\n"
#define RESULT(n) "sw a4, " #n "*4(a2)\n"

PART(write_x, X_IS_1);
PART(write_y, Y_IS_1);

PART(mp_writer, X_IS_1 Y_IS_1);
PART(mp_writer_fence, X_IS_1 "fence w, w\n" Y_IS_1);
PART(mp_writer_release, X_IS_1 "amoswap.w.rl zero, a3, (a1)\n");
PART(mp_reader, "lw a4, 0(a1)\nlw a5, 0(a0)\nsw a4, 0(a2)\nsw a5, 4(a2)\n");
PART(mp_reader_fence, "lw a4, 0(a1)\nfence r, r\nlw a5, 0(a0)\nsw a4, 0(a2)\nsw a5, 4(a2)\n");
PART(mp_reader_acquire, "lr.w.aq a4, (a1)\nlw a5, 0(a0)\nsw a4, 0(a2)\nsw a5, 4(a2)\n");
PART(mp_reader_address, "lw a4, 0(a1)\nxor a5, a4, a4\nadd a0, a0, a5\nlw a5, 0(a0)\nsw a4, 0(a2)\nsw a5, 4(a2)\n");

PART(sb_0, X_IS_1 READ_Y RESULT(0));
PART(sb_1, Y_IS_1 READ_X RESULT(1));
PART(sb_0_fence, X_IS_1 "fence rw, rw\n" READ_Y RESULT(0));
PART(sb_1_fence, Y_IS_1 "fence rw, rw\n" READ_X RESULT(1));
PART(sb_0_amo, "amoswap.w.aqrl zero, a3, (a0)\n" READ_Y RESULT(0));
PART(sb_1_amo, "amoswap.w.aqrl zero, a3, (a1)\n" READ_X RESULT(1));

PART(lb_0, READ_X Y_IS_1 RESULT(0));
PART(lb_1, READ_Y X_IS_1 RESULT(1));
PART(lb_0_fence, READ_X "fence rw, rw\n" Y_IS_1 RESULT(0));
PART(lb_1_fence, READ_Y "fence rw, rw\n" X_IS_1 RESULT(1));
PART(lb_0_data, READ_X "xor a5, a4, a4\nadd a5, a5, a3\nsw a5, 0(a1)\n" RESULT(0));
PART(lb_1_data, READ_Y "xor a5, a4, a4\nadd a5, a5, a3\nsw a5, 0(a0)\n" RESULT(1));

PART(iriw_xy, "lw a4, 0(a0)\nlw a5, 0(a1)\nsw a4, 0(a2)\nsw a5, 4(a2)\n");
PART(iriw_yx, "lw a4, 0(a1)\nlw a5, 0(a0)\nsw a4, 8(a2)\nsw a5, 12(a2)\n");
PART(iriw_xy_fence, "lw a4, 0(a0)\nfence r, r\nlw a5, 0(a1)\nsw a4, 0(a2)\nsw a5, 4(a2)\n");
PART(iriw_yx_fence, "lw a4, 0(a1)\nfence r, r\nlw a5, 0(a0)\nsw a4, 8(a2)\nsw a5, 12(a2)\n");

PART(corr_reader, "lw a4, 0(a0)\nlw a5, 0(a0)\nsw a4, 0(a2)\nsw a5, 4(a2)\n");

PART(ww_0, "li a4, 2\nsw a3, 0(a0)\nsw a4, 0(a1)\n");
PART(ww_1, "li a4, 2\nsw a3, 0(a1)\nsw a4, 0(a0)\n");
PART(ww_0_fence, "li a4, 2\nsw a3, 0(a0)\nfence w, w\nsw a4, 0(a1)\n");
PART(ww_1_fence, "li a4, 2\nsw a3, 0(a1)\nfence w, w\nsw a4, 0(a0)\n");

/* Results as bits, the first one read the highest; `relaxed` is the outcome in question. */
enum { IN_MEMORY = 1, FORBIDDEN = 2 };
static struct shape {
    const char *name;
    u32 harts, results, relaxed, flags;
    void (*part[4])(u32 *, u32 *, u32 *);
    barrier start, end;
    u32 count[16];
} shapes[] = {
    {"IRIW", 4, 4, 0b1010, 0, {write_x, write_y, iriw_xy, iriw_yx}, {}, {}, {}},
    {"IRIW with fences", 4, 4, 0b1010, FORBIDDEN, {write_x, write_y, iriw_xy_fence, iriw_yx_fence}, {}, {}, {}},
    {"MP", 2, 2, 0b10, 0, {mp_writer, mp_reader}, {}, {}, {}},
    {"MP with fences", 2, 2, 0b10, FORBIDDEN, {mp_writer_fence, mp_reader_fence}, {}, {}, {}},
    {"MP with release and acquire", 2, 2, 0b10, FORBIDDEN, {mp_writer_release, mp_reader_acquire}, {}, {}, {}},
    {"MP with fence and address", 2, 2, 0b10, FORBIDDEN, {mp_writer_fence, mp_reader_address}, {}, {}, {}},
    {"SB", 2, 2, 0b00, 0, {sb_0, sb_1}, {}, {}, {}},
    {"SB with fences", 2, 2, 0b00, FORBIDDEN, {sb_0_fence, sb_1_fence}, {}, {}, {}},
    {"SB with amoswap.aqrl", 2, 2, 0b00, FORBIDDEN, {sb_0_amo, sb_1_amo}, {}, {}, {}},
    {"LB", 2, 2, 0b11, 0, {lb_0, lb_1}, {}, {}, {}},
    {"LB with fences", 2, 2, 0b11, FORBIDDEN, {lb_0_fence, lb_1_fence}, {}, {}, {}},
    {"LB with data dependencies", 2, 2, 0b11, FORBIDDEN, {lb_0_data, lb_1_data}, {}, {}, {}},
    {"CoRR", 2, 2, 0b10, FORBIDDEN, {write_x, corr_reader}, {}, {}, {}},
    {"2+2W", 2, 2, 0b11, IN_MEMORY, {ww_0, ww_1}, {}, {}, {}},
    {"2+2W with fences", 2, 2, 0b11, IN_MEMORY | FORBIDDEN, {ww_0_fence, ww_1_fence}, {}, {}, {}},
};

static void tally(struct shape *it)
{
    for (int i = 0; i < BATCH; i++) {
        u32 outcome = 0;
        for (u32 k = 0; k < it->results; k++)
            outcome = outcome << 1 | seen[i][k];
        if (it->flags & IN_MEMORY)
            outcome = (memory[i].x == 1) << 1 | (memory[i].y == 1);
        it->count[outcome & 15]++;
        memory[i].x = memory[i].y = seen[i][0] = seen[i][1] = seen[i][2] = seen[i][3] = 0;
    }
}

/* Near enough to the other hart that accesses overlap, but never in step: one that is ahead waits. More than two harts
 * are let go, for where they share fewer cores this would have each wait for its turn. */
static void keep_close(u32 harts, u64 hart, u32 at, u64 *random)
{
    __atomic_store_n(&progress[hart].at, at, __ATOMIC_RELAXED);
    while (harts == 2 && __atomic_load_n(&progress[1 - hart].at, __ATOMIC_RELAXED) + 4 < at)
        ;
    *random ^= *random << 13, *random ^= *random >> 7, *random ^= *random << 17;
    for (volatile u64 delay = *random & 15; delay; delay--)
        ;
}

static void run_shape(struct shape *it, u64 hart)
{
    u64 random = hart + 1;
    for (int batch = 0; batch < BATCHES; batch++) {
        meet(&it->start, it->harts);
        for (u32 i = 0; i < BATCH; i++) {
            if (i % 4 == 0)
                keep_close(it->harts, hart, i, &random);
            it->part[hart](&memory[i].x, &memory[i].y, seen[i]);
        }
        progress[hart].at = BATCH;
        meet(&it->end, it->harts);
        if (hart == 0)
            tally(it);
        progress[hart].at = 0;
    }
}

static void conclude(struct shape *it)
{
    u32 relaxed = it->count[it->relaxed];
    int good = !(it->flags & FORBIDDEN && relaxed);
    check(good, it->name);
    print("    ");
    for (u32 outcome = 0; outcome < 1u << it->results; outcome++) {
        if (!it->count[outcome])
            continue;
        print(" ");
        for (int bit = it->results - 1; bit >= 0; bit--)
            print("%u", outcome >> bit & 1);
        print("=%u", it->count[outcome]);
    }
    print(it->flags & FORBIDDEN ? "; forbidden: %u\n" : "; relaxed, and allowed: %u\n", relaxed);
}

void main(u64 hart, const void *tree)
{
    u32 harts = tree_nodes(tree, "cpu@");
    for (u64 i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct shape *it = &shapes[i];
        if (it->harts > harts || hart >= it->harts)
            continue;
        run_shape(it, hart);
        if (hart == 0)
            conclude(it);
    }
    if (hart == 0)
        report();
}
