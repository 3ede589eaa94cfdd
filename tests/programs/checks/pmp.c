/* Physical memory protection: matching, priority, permissions, granularity, locking (priv. spec 3.7). */
#include "check.h"

enum config { R = 1, W = 2, X = 4, TOR = 1 << 3, NA4 = 2 << 3, NAPOT = 3 << 3, LOCKED = 0x80 };

CODE(do_amo, "amoadd.d a1, a1, (a0)");

/* The area under test: 64 KiB, in words that read as an ecall so that it can also be jumped to. */
static u32 area[16384] __attribute__((aligned(65536)));
#define AT(offset) ((u64)area + (offset))

static void set_entry(int index, u64 address, u8 config)
{
    u64 shift = index % 8 * 8;
    switch (index) {
    case 0: csr_write(pmpaddr0, address); break;
    case 1: csr_write(pmpaddr1, address); break;
    case 2: csr_write(pmpaddr2, address); break;
    default: csr_write(pmpaddr3, address); break;
    }
    csr_clear(pmpcfg0, 0xfful << shift);
    csr_set(pmpcfg0, (u64)config << shift);
}

static u64 napot(u64 base, u64 size) { return base >> 2 | (size / 8 - 1); }

static u64 load(enum mode mode, u64 address) { return run(mode, do_load, address, 0); }
static u64 store(enum mode mode, u64 address) { return run(mode, do_store, address, 0x0000007300000073); }
static u64 jump(enum mode mode, u64 address) { return run(mode, do_call, address, 0); }

static void clear(void)
{
    for (int i = 0; i < 4; i++)
        set_entry(i, 0, 0);
}

static void no_match(void)
{
    csr_write(pmpcfg2, 0);
    check_equal(load(MACHINE, AT(0)), ECALL + MACHINE, "with no entries M-mode may do all");
    set_entry(0, napot(AT(0), 4096), NAPOT | R | W | X);
    check_equal(run(SUPERVISOR, do_nothing, 0, 0), FETCH_ACCESS, "S-mode may do nothing where no entry matches");
    check_equal(trapped.tval, (u64)do_nothing, "a fetch that is denied has its address in mtval");
    clear();
    allow_all();
    check_equal(load(USER, AT(0)), ECALL + USER, "an entry over all of memory lets U-mode do all");
}

static void permissions(void)
{
    static const u8 configs[] = {0, R, X, R | W, R | X, R | W | X};
    int good = 1;
    for (u64 i = 0; i < sizeof configs; i++) {
        u8 config = configs[i];
        set_entry(0, napot(AT(0), 4096), NAPOT | config);
        for (enum mode mode = USER; mode <= SUPERVISOR; mode++) {
            good &= load(mode, AT(8)) == (config & R ? ECALL + (u64)mode : LOAD_ACCESS);
            good &= config & R || trapped.tval == AT(8);
            good &= store(mode, AT(8)) == (config & W ? ECALL + (u64)mode : STORE_ACCESS);
            good &= config & W || trapped.tval == AT(8);
            good &= run(mode, do_amo, AT(16), 0) == ((config & (R | W)) == (R | W) ? ECALL + (u64)mode : STORE_ACCESS);
            good &= jump(mode, AT(8)) == (config & X ? ECALL + (u64)mode : FETCH_ACCESS);
            good &= trapped.epc == AT(8);
        }
        good &= load(MACHINE, AT(8)) == ECALL + MACHINE && store(MACHINE, AT(8)) == ECALL + MACHINE;
    }
    check(good, "R, W and X bind S- and U-mode, and not M-mode");
    clear();
}

static void edges(void)
{
    set_entry(0, napot(AT(4096), 4096), NAPOT);
    check(load(USER, AT(4096 - 8)) == ECALL && load(USER, AT(8192)) == ECALL, "NAPOT lets its neighbours be");
    check(load(USER, AT(4096)) == LOAD_ACCESS && load(USER, AT(8184)) == LOAD_ACCESS, "and covers both its ends");
    check_equal(load(USER, AT(4096 - 4)), LOAD_ACCESS, "an access half inside is denied");
    set_entry(0, napot(AT(4096), 8), NAPOT);
    csr_write(pmpaddr1, -1ul);
    u64 grain = csr_read(pmpaddr1);
    check_equal(grain >> 10 & 1, 1, "pmpaddr keeps the bits that count");
    if (load(USER, AT(4096)) == LOAD_ACCESS && load(USER, AT(4096 + 8)) == ECALL)
        check(load(USER, AT(4096 - 8)) == ECALL, "a NAPOT of 8 bytes covers just those");
    set_entry(0, AT(4096) >> 2, 0);
    set_entry(1, AT(8192) >> 2, TOR | R);
    check(load(USER, AT(4096)) == ECALL && store(USER, AT(4096)) == STORE_ACCESS, "TOR starts at the entry below it");
    check(store(USER, AT(8192)) == ECALL && store(USER, AT(4088)) == ECALL, "and ends before its own address");
    set_entry(1, AT(4096) >> 2, TOR);
    check_equal(load(USER, AT(4096)), ECALL, "an empty TOR matches nothing");
    clear();
    set_entry(0, AT(4096) >> 2, TOR | X | R);
    check(store(USER, AT(0)) == STORE_ACCESS && store(USER, AT(4096)) == ECALL, "TOR of entry 0 starts at address 0");
    clear();
}

static void priority(void)
{
    set_entry(0, napot(AT(4096), 4096), NAPOT | R);
    set_entry(1, napot(AT(0), 65536), NAPOT | R | W | X);
    check(load(USER, AT(4096)) == ECALL && store(USER, AT(4096)) == STORE_ACCESS, "the lowest entry that matches decides");
    check_equal(store(USER, AT(0)), ECALL, "the next one where it does not match");
    set_entry(0, 0, 0);
    set_entry(2, napot(AT(4096), 4096), NAPOT);
    check_equal(store(USER, AT(4096)), ECALL, "a higher entry cannot take away what a lower one gave");
    clear();
}

static void effective_privilege(void)
{
    set_entry(0, napot(AT(4096), 4096), NAPOT | R);
    csr_set(mstatus, MSTATUS_MPRV); /* and mret in run() leaves MPP = U */
    check_equal(load(MACHINE, AT(4096)), ECALL + MACHINE, "under MPRV M-mode may load what U-mode may");
    csr_set(mstatus, MSTATUS_MPRV);
    check_equal(store(MACHINE, AT(4096)), STORE_ACCESS, "but not store where U-mode may not");
    check_equal(store(MACHINE, AT(4096)), ECALL + MACHINE, "without MPRV it stores there");
    clear();
}

static void locking(void)
{
    set_entry(3, napot(AT(32768), 4096), NAPOT | R | LOCKED);
    check(load(MACHINE, AT(32768)) == ECALL + MACHINE, "a locked entry lets M-mode do what it allows");
    check_equal(store(MACHINE, AT(32768)), STORE_ACCESS, "and nothing else");
    u64 address = csr_read(pmpaddr3), config = csr_read(pmpcfg0);
    csr_write(pmpaddr3, 0);
    csr_write(pmpcfg0, 0);
    check(csr_read(pmpaddr3) == address && csr_read(pmpcfg0) == config, "it cannot be changed any more");
    check_equal(store(MACHINE, AT(32768)), STORE_ACCESS, "and still holds");
}

void main(u64 hart, const void *tree)
{
    (void)tree;
    if (hart)
        return;
    for (u64 i = 0; i < sizeof area / sizeof *area; i++)
        area[i] = 0x73;
    asm volatile("fence.i" ::: "memory");
    no_match();
    permissions();
    edges();
    priority();
    effective_privilege();
    locking();
    report();
}
