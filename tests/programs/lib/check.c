#include "check.h"

struct trapped trapped;
extern const char run_ends[];
static u32 passed, failed;

void trap(u64 *frame)
{
    trapped.cause = csr_read(mcause);
    trapped.epc = frame[0];
    trapped.tval = csr_read(mtval);
    trapped.mstatus = csr_read(mstatus);
    trapped.from = trapped.mstatus >> 11 & 3;
    for (int i = 0; i < 8; i++)
        trapped.a[i] = frame[10 + i];
    csr_set(mstatus, MSTATUS_MPP);
    csr_clear(mstatus, MSTATUS_MPIE | MSTATUS_MPRV);
    frame[0] = (u64)run_ends;
}

void check(int good, const char *name)
{
    print("%s %s\n", good ? "PASS" : "FAIL", name);
    *(good ? &passed : &failed) += 1;
}

void check_equal(u64 got, u64 wanted, const char *name)
{
    check(got == wanted, name);
    if (got != wanted)
        print("     got %lx, wanted %lx\n", got, wanted);
}

void check_trap(u64 cause, u64 epc, u64 tval, const char *name)
{
    int good = trapped.cause == cause && trapped.epc == epc && trapped.tval == tval;
    check(good, name);
    if (!good)
        print("     got cause %lx epc %lx tval %lx, wanted %lx %lx %lx\n", trapped.cause, trapped.epc, trapped.tval, cause,
              epc, tval);
}

void report(void)
{
    print("%u passed, %u failed\n", passed, failed);
    finish(failed != 0);
}

void allow_all(void)
{
    csr_write(pmpaddr15, -1ul);
    csr_write(pmpcfg2, 0x1ful << 56); /* NAPOT, read, write, execute */
}
