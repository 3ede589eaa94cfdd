/* Sv39 and Sv48: permissions, A and D, superpages, reserved encodings, faults' addresses, sfence.vma (priv. spec 4.3-4.5).
 *
 * S-mode runs its snippets at their own addresses, in a 1 GiB page over all of memory; U-mode in a second one. */
#include "check.h"

enum pte { V = 1, R = 2, W = 4, X = 8, U = 16, G = 32, A = 64, D = 128 };
enum access { LOAD, STORE, FETCH };
enum adue { HARDWARE, FAULTS }; /* who sets A and D */
#define ALL (V | R | W | X | A | D)

#define RAM 0x80000000ul
#define USER_WINDOW 0x40000000ul /* RAM for U-mode */
#define TEST 0xc0000000ul        /* pages under test */
#define HOLE 0xe000000ul         /* physical: between the PLIC and the UART */
#define PBMTE (1ul << 62)
#define ADUE (1ul << 61)

typedef u64 table[512];
static table root, other_root, third, middle, last, high __attribute__((aligned(4096)));
static u64 *top; /* the level of 1 GiB pages: `root` under Sv39, `third` under Sv48 */
static u64 satp;
static int levels;

/* Two pages full of ecalls that are not side by side. */
static struct { u32 near[1024], gap[1024], far[1024]; } pages __attribute__((aligned(4096)));

CODE(do_load_as_supervisor, "li t0, 1 << 11\ncsrs mstatus, t0\nli t0, 1 << 17\ncsrs mstatus, t0\nld a1, 0(a0)");
CODE(do_load_as_user, "li t0, 1 << 17\ncsrs mstatus, t0\nld a1, 0(a0)");
CODE(do_load_32, "lw a1, 0(a0)");

static u64 leaf(const void *page, u64 flags) { return (u64)page >> 12 << 10 | flags; }
static u64 branch(const void *page) { return (u64)page >> 12 << 10 | V; }
static void flush(void) { asm volatile("sfence.vma" ::: "memory"); }

static void set(u64 *entry, u64 value)
{
    *(volatile u64 *)entry = value;
    flush();
}

static u64 attempt(enum mode mode, enum access access, u64 address)
{
    const char *code = access == LOAD ? do_load : access == STORE ? do_store : do_call;
    return run(mode, mode == USER ? code - RAM + USER_WINDOW : code, address, 0x0000007300000073);
}

static u64 page_fault(enum access access) { return access == LOAD ? LOAD_PAGE : access == STORE ? STORE_PAGE : FETCH_PAGE; }
static u64 access_fault(enum access access)
{
    return access == LOAD ? LOAD_ACCESS : access == STORE ? STORE_ACCESS : FETCH_ACCESS;
}

/* All three accesses of S-mode to `address` end with the fault that `wanted` names, and say where. */
static int all_fault(u64 wanted(enum access), u64 address)
{
    int good = 1;
    for (enum access access = LOAD; access <= FETCH; access++) {
        good &= attempt(SUPERVISOR, access, address) == wanted(access);
        good &= trapped.tval == address;
    }
    return good;
}

static int all_work(u64 address)
{
    int good = 1;
    for (enum access access = LOAD; access <= FETCH; access++)
        good &= attempt(SUPERVISOR, access, address) == ECALL + SUPERVISOR;
    return good;
}

static void build(void)
{
    for (int i = 0; i < 512; i++)
        root[i] = other_root[i] = third[i] = middle[i] = last[i] = high[i] = 0;
    top = levels == 3 ? root : third;
    if (levels == 4)
        root[0] = branch(third);
    top[RAM >> 30] = leaf((void *)RAM, ALL);
    top[USER_WINDOW >> 30] = leaf((void *)RAM, ALL | U);
    top[TEST >> 30] = branch(middle);
    middle[0] = branch(last);
    satp = (u64)(levels + 5) << 60 | (u64)root >> 12;
    csr_write(satp, satp);
    flush();
}

static void permissions(enum adue policy, const char *name)
{
    u32 wrong = 0, runs = 0;
    for (u64 flags = 0; flags < 256; flags++) {
        if (flags & G)
            continue;
        for (int combination = 0; combination < 24; combination++) {
            enum mode mode = combination & 1;
            enum access access = combination >> 3;
            u64 sum = combination >> 1 & 1, mxr = combination >> 2 & 1;
            csr_clear(mstatus, MSTATUS_SUM | MSTATUS_MXR);
            csr_set(mstatus, (sum ? MSTATUS_SUM : 0) | (mxr ? MSTATUS_MXR : 0));
            set(&last[0], leaf(pages.near, flags));

            int valid = flags & V && flags & (R | X) && !(flags & W && !(flags & R));
            int reach = mode == USER ? flags & U : !(flags & U) || (sum && access != FETCH);
            int kind = access == LOAD ? flags & R || (mxr && flags & X) : access == STORE ? flags & W : flags & X;
            u64 marks = access == STORE ? A | D : A;
            int good = valid && reach && kind && (policy == HARDWARE || (flags & marks) == marks);
            u64 cause = attempt(mode, access, TEST);
            u64 after = *(volatile u64 *)&last[0];
            int right = cause == (good ? ECALL + (u64)mode : page_fault(access)) && (good || trapped.tval == TEST) &&
                        after == leaf(pages.near, good ? flags | marks : flags);
            if (!right && !wrong++)
                print("     flags %lx mode %u access %u sum %lu mxr %lu: cause %lx tval %lx pte %lx\n", flags, mode,
                      access, sum, mxr, cause, trapped.tval, after);
            runs++;
        }
    }
    csr_clear(mstatus, MSTATUS_SUM | MSTATUS_MXR);
    check(!wrong && runs == 3072, name);
}

static void accessed_and_dirty(void)
{
    csr_set(menvcfg, ADUE);
    int switchable = !!(csr_read(menvcfg) & ADUE);
    if (switchable) {
        permissions(HARDWARE, "3072 combinations of flags, mode, access, SUM and MXR, hardware setting A and D");
        csr_clear(menvcfg, ADUE);
        permissions(FAULTS, "the same with A and D clear as faults");
        csr_set(menvcfg, ADUE);
    } else {
        set(&last[0], leaf(pages.near, V | R));
        enum adue policy = attempt(SUPERVISOR, LOAD, TEST) == LOAD_PAGE ? FAULTS : HARDWARE;
        permissions(policy, "3072 combinations of flags, mode, access, SUM and MXR");
    }
}

static void superpages(void)
{
    u64 inside = (u64)pages.near & 0x1fffff, far = TEST + 0x200000;
    set(&middle[1], leaf((void *)((u64)pages.near & ~0x1ffffful), ALL));
    check(all_work(far + inside), "2 MiB pages");
    set(&middle[1], leaf((void *)RAM, ALL) | 1 << 10);
    check(all_fault(page_fault, far), "a misaligned 2 MiB page is a page fault");
    check_equal(attempt(SUPERVISOR, LOAD, (u64)pages.near), ECALL + SUPERVISOR, "1 GiB pages");
    set(&top[4], leaf((void *)RAM, ALL) | 512 << 10);
    check(all_fault(page_fault, 4ul << 30), "a misaligned 1 GiB page is a page fault");
    top[4] = 0;
    if (levels == 4) {
        set(&root[1], leaf(0, ALL));
        check(all_work((1ul << 39) + (u64)pages.near), "512 GiB pages");
        set(&root[1], leaf(0, ALL) | 1 << 10);
        check(all_fault(page_fault, (1ul << 39) + (u64)pages.near), "a misaligned 512 GiB page is a page fault");
        root[1] = 0;
    }
    set(&middle[1], 0);
}

static void reserved(void)
{
    set(&last[0], branch(last));
    check(all_fault(page_fault, TEST), "a pointer in the last level is a page fault");
    set(&last[0], leaf(pages.near, ALL));
    int good = 1;
    for (u64 flag = U; flag <= D; flag <<= 1) {
        if (flag == G)
            continue;
        set(&middle[0], branch(last) | flag);
        good &= all_fault(page_fault, TEST);
    }
    check(good, "U, A and D in a pointer are page faults");
    set(&middle[0], branch(last));
    good = 1;
    for (int bit = 54; bit <= 60; bit++) {
        set(&last[0], leaf(pages.near, ALL) | 1ul << bit);
        good &= all_fault(page_fault, TEST);
    }
    check(good, "reserved high bits are page faults");
    csr_clear(menvcfg, PBMTE);
    set(&last[0], leaf(pages.near, ALL) | 1ul << 61);
    check(all_fault(page_fault, TEST), "without PBMTE a memory type is a page fault");
    csr_set(menvcfg, PBMTE);
    if (csr_read(menvcfg) & PBMTE) {
        flush();
        good = all_work(TEST);
        set(&last[0], leaf(pages.near, ALL) | 2ul << 61);
        check(good && all_work(TEST), "Svpbmt: types NC and IO work");
        set(&last[0], leaf(pages.near, ALL) | 3ul << 61);
        check(all_fault(page_fault, TEST), "Svpbmt: type 3 is a page fault");
        set(&middle[0], branch(last) | 1ul << 61);
        set(&last[0], leaf(pages.near, ALL));
        check(all_fault(page_fault, TEST), "Svpbmt: a type in a pointer is a page fault");
        set(&middle[0], branch(last));
    }
    set(&last[0], leaf(pages.near, ALL));
}

static void addresses(void)
{
    u64 sign = 1ul << (levels == 3 ? 38 : 47);
    check(all_fault(page_fault, TEST | sign << 1), "an address that is not canonical is a page fault");
    check(all_fault(page_fault, TEST | 1ul << 63), "also with only bit 63 wrong");
    set(&root[511], levels == 3 ? branch(middle) : branch(high));
    set(&high[511], branch(middle));
    check(all_work(-(1ul << 30)), "the highest GiB");
    set(&last[0], leaf((void *)HOLE, ALL));
    check(all_fault(access_fault, TEST), "a page where no memory is: access faults");
    set(&last[0], leaf(pages.near, ALL));
    set(&middle[0], branch((void *)HOLE));
    check(all_fault(access_fault, TEST), "a table where no memory is: access faults of the access's own kind");
    set(&middle[0], branch(last));
    csr_write(pmpaddr0, (u64)last >> 2 | 511);
    csr_write(pmpcfg0, 0x18);
    flush();
    check(all_fault(access_fault, TEST), "a table that PMP denies: access faults too");
    csr_write(pmpcfg0, 0x19);
    flush();
    check(all_work(TEST), "PMP lets it be read: pages with A and D set work");
    csr_write(pmpcfg0, 0);
    csr_write(pmpaddr0, 0);
    flush();
}

static void crossing(void)
{
    u64 second = TEST + 4096;
    set(&last[0], leaf(pages.near, ALL));
    set(&last[1], leaf(pages.far, ALL));
    u8 *end = (u8 *)(pages.near + 1024), *start = (u8 *)pages.far;
    for (int i = 0; i < 4; i++) {
        end[i - 4] = i + 1;
        start[i] = i + 5;
    }
    attempt(SUPERVISOR, LOAD, second - 4);
    int misaligned = trapped.cause == LOAD_MISALIGNED;
    if (!misaligned) {
        check_equal(trapped.a[1], 0x0807060504030201, "a load over two pages takes from both");
        attempt(SUPERVISOR, STORE, second - 4);
        check(pages.near[1023] == 0x73 && pages.far[0] == 0x73, "a store goes to both");
        set(&last[1], 0);
        pages.near[1023] = 7;
        check_equal(attempt(SUPERVISOR, LOAD, second - 4), LOAD_PAGE, "without the second page a load faults");
        check(trapped.tval == second - 4 || trapped.tval == second, "with an address in it");
        check_equal(attempt(SUPERVISOR, STORE, second - 4), STORE_PAGE, "a store too");
        check_equal(pages.near[1023], 7, "and writes nothing to the first page");
    }
    /* addi a1, a1, 1 (0x00158593) split, and an ecall behind it. */
    pages.near[1023] = 0x85930001;
    pages.far[0] = 0x00730015;
    pages.far[1] = 0;
    asm volatile("fence.i" ::: "memory");
    set(&last[1], leaf(pages.far, ALL));
    run(SUPERVISOR, do_call, second - 2, 41);
    check(trapped.cause == ECALL + SUPERVISOR && trapped.a[1] == 42, "an instruction over two pages");
    check_equal(trapped.epc, second + 2, "and its successor's address");
    set(&last[1], 0);
    run(SUPERVISOR, do_call, second - 2, 41);
    check_trap(FETCH_PAGE, second - 2, second, "without the second page mtval says which half is missing");
    pages.near[1023] = pages.far[0] = pages.far[1] = 0x73;
    asm volatile("fence.i" ::: "memory");
}

static void effective_privilege(void)
{
    pages.near[0] = 0x73;
    set(&last[0], leaf(pages.near, ALL));
    check_equal(run(MACHINE, do_load_as_supervisor, TEST, 0), ECALL + MACHINE, "MPRV: M-mode loads as S-mode");
    check_equal(run(MACHINE, do_load_as_user, TEST, 0), LOAD_PAGE, "MPRV: M-mode loads as U-mode");
    set(&last[0], leaf(pages.near, ALL | U));
    check_equal(run(MACHINE, do_load_as_user, TEST, 0), ECALL + MACHINE, "MPRV: a user page as U-mode");
    check_equal(run(MACHINE, do_load_as_supervisor, TEST, 0), LOAD_PAGE, "MPRV: and as S-mode without SUM");
    check_equal(run(MACHINE, do_load_32, TEST, 0), LOAD_ACCESS, "without MPRV M-mode has no translation");
}

static u64 seen(u64 address)
{
    attempt(SUPERVISOR, LOAD, address);
    return trapped.cause == ECALL + SUPERVISOR ? trapped.a[1] : -1ul;
}

static void fences(void)
{
    *(u64 *)pages.near = 0x1111;
    *(u64 *)pages.far = 0x2222;
    set(&last[0], leaf(pages.near, ALL));
    int good = seen(TEST) == 0x1111;
    *(volatile u64 *)&last[0] = leaf(pages.far, ALL);
    asm volatile("sfence.vma %0" ::"r"(TEST) : "memory");
    check(good && seen(TEST) == 0x2222, "sfence.vma of an address shows its new page");
    *(volatile u64 *)&last[0] = leaf(pages.near, ALL);
    asm volatile("sfence.vma zero, %0" ::"r"(0) : "memory");
    check_equal(seen(TEST), 0x1111, "sfence.vma of an address space too");
    *(volatile u64 *)&last[0] = leaf(pages.near, V | R | A | D);
    asm volatile("sfence.vma %0, %1" ::"r"(TEST), "r"(0) : "memory");
    check_equal(attempt(SUPERVISOR, STORE, TEST), STORE_PAGE, "and of both: a permission that was taken away is gone");
    set(&last[0], leaf(pages.near, ALL));

    for (int i = 0; i < 512; i++)
        other_root[i] = root[i];
    *(levels == 3 ? &other_root[TEST >> 30] : &other_root[0]) = 0;
    if (levels == 3) {
        other_root[TEST >> 30] = leaf((void *)RAM, ALL);
        u64 offset = (u64)pages.far - RAM;
        set(&last[offset >> 12 & 511], leaf(pages.near, ALL));
        middle[offset >> 21] = branch(last);
        csr_write(satp, satp | 1ul << 44);
        if (csr_read(satp) != satp) {
            flush();
            u64 one = seen(TEST + offset);
            csr_write(satp, 8ul << 60 | 2ul << 44 | (u64)other_root >> 12);
            u64 two = seen(TEST + offset);
            csr_write(satp, satp | 1ul << 44);
            u64 three = seen(TEST + offset);
            check(one == 0x1111 && two == 0x2222 && three == 0x1111, "address spaces keep their translations apart");
        }
    }
    csr_write(satp, 0);
    flush();
    check_equal(seen((u64)pages.near), 0x1111, "satp 0 switches translation off");
}

void main(u64 hart, const void *tree)
{
    (void)tree;
    if (hart)
        return;
    for (int i = 0; i < 1024; i++)
        pages.near[i] = pages.far[i] = 0x73;
    asm volatile("fence.i" ::: "memory");
    allow_all();
    csr_clear(menvcfg, PBMTE);
    for (levels = 3; levels <= 4; levels++) {
        print("Sv%u\n", levels == 3 ? 39 : 48);
        build();
        check_equal(csr_read(satp), satp, "satp takes the mode");
        pages.near[0] = pages.near[1] = pages.far[0] = pages.far[1] = 0x73;
        asm volatile("fence.i" ::: "memory");
        accessed_and_dirty();
        superpages();
        reserved();
        addresses();
        crossing();
        effective_privilege();
        fences();
    }
    report();
}
