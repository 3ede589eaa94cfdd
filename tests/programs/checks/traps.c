/* Synchronous traps: cause, mepc, mtval and mstatus of each, from each privilege (priv. spec 3.1.14-3.1.16, 3.3). */
#include "check.h"

CODE(do_ebreak, ".option push\n.option norvc\nebreak\n.option pop");
CODE(do_c_ebreak, "c.ebreak");
CODE(do_zeros, ".half 0\n.half 0");
CODE(do_write_cycle, "csrw cycle, zero");
CODE(do_read_unknown, "csrr a1, 0x5c0");
CODE(do_read_mscratch, "csrr a1, mscratch");
CODE(do_read_sscratch, "csrr a1, sscratch");
CODE(do_read_satp, "csrr a1, satp");
CODE(do_read_cycle, "csrr a1, cycle");
CODE(do_read_time, "csrr a1, time");
CODE(do_mret, "mret");
CODE(do_sret, "sret");
CODE(do_wfi, "wfi");
CODE(do_sfence, "sfence.vma");
CODE(do_float, "fmv.d.x fa0, a0\nfadd.d fa0, fa0, fa0\nfmv.x.d a1, fa0");
CODE(do_set_frm, "fsrmi 5\nfmv.d.x fa0, a0\nfadd.d fa0, fa0, fa0");
CODE(do_amo, "amoadd.d a1, a1, (a0)");
CODE(do_lr, "lr.d a1, (a0)");
CODE(do_sc, "sc.d a1, a1, (a0)");
CODE(do_load_32, "lw a1, 0(a0)");

static u64 memory[4] __attribute__((aligned(64)));
#define HOLE 0xe000000ul /* between the PLIC and the UART */

static void environment_calls(void)
{
    run(USER, do_nothing, 0, 0);
    check_trap(ECALL + USER, (u64)do_nothing, 0, "ecall from U-mode is cause 8");
    check_equal(trapped.from, USER, "mstatus.MPP says U-mode");
    run(SUPERVISOR, do_nothing, 0, 0);
    check_trap(ECALL + SUPERVISOR, (u64)do_nothing, 0, "ecall from S-mode is cause 9");
    check_equal(trapped.from, SUPERVISOR, "mstatus.MPP says S-mode");
    run(MACHINE, do_nothing, 0, 0);
    check_trap(ECALL + MACHINE, (u64)do_nothing, 0, "ecall from M-mode is cause 11");
    check_equal(trapped.from, MACHINE, "mstatus.MPP says M-mode");

    csr_set(mstatus, MSTATUS_MPIE);
    csr_write(mie, 0);
    run(SUPERVISOR, do_nothing, 0, 0);
    check_equal(trapped.mstatus & (MSTATUS_MIE | MSTATUS_MPIE), MSTATUS_MPIE, "a trap moves MIE to MPIE and clears MIE");
    csr_set(mstatus, MSTATUS_MPRV);
    run(USER, do_nothing, 0, 0);
    check_equal(trapped.mstatus & MSTATUS_MPRV, 0, "mret to a lower mode clears MPRV");
}

static void breakpoints(void)
{
    run(SUPERVISOR, do_ebreak, 0, 0);
    check(trapped.cause == BREAKPOINT && trapped.epc == (u64)do_ebreak, "ebreak is cause 3");
    check(trapped.tval == 0 || trapped.tval == trapped.epc, "its mtval is 0 or its address");
    run(USER, do_c_ebreak, 0, 0);
    check(trapped.cause == BREAKPOINT && trapped.epc == (u64)do_c_ebreak, "c.ebreak is cause 3");
}

/* mtval of an illegal instruction is its bits, or 0 where a machine does not say (priv. spec 3.1.16). */
static void check_illegal(enum mode mode, const char *code, const char *name)
{
    u64 bits = *(const unsigned short *)code;
    if ((bits & 3) == 3)
        bits |= (u64) * (const unsigned short *)(code + 2) << 16;
    run(mode, code, 0, 0);
    int good = trapped.cause == ILLEGAL && trapped.epc == (u64)code && (trapped.tval == bits || trapped.tval == 0);
    check(good, name);
    if (!good)
        print("     got cause %lx epc %lx tval %lx\n", trapped.cause, trapped.epc, trapped.tval);
}

static void check_legal(enum mode mode, const char *code, const char *name)
{
    run(mode, code, 0, 0);
    check_equal(trapped.cause, ECALL + mode, name);
}

static void illegal_instructions(void)
{
    check_illegal(MACHINE, do_zeros, "16 zero bits are illegal");
    check_illegal(MACHINE, do_write_cycle, "writing a read-only CSR is illegal");
    check_illegal(MACHINE, do_read_unknown, "reading a CSR that is not there is illegal");
    check_illegal(SUPERVISOR, do_read_mscratch, "S-mode may not read mscratch");
    check_illegal(USER, do_read_sscratch, "U-mode may not read sscratch");
    check_legal(SUPERVISOR, do_read_sscratch, "S-mode may read sscratch");
    check_illegal(SUPERVISOR, do_mret, "S-mode may not mret");
    check_illegal(USER, do_mret, "U-mode may not mret");
    check_illegal(USER, do_sret, "U-mode may not sret");
    check_illegal(USER, do_sfence, "U-mode may not sfence.vma");

    csr_set(mstatus, MSTATUS_TSR | MSTATUS_TVM | MSTATUS_TW);
    check_illegal(SUPERVISOR, do_sret, "TSR traps sret of S-mode");
    check_illegal(SUPERVISOR, do_sfence, "TVM traps sfence.vma of S-mode");
    check_illegal(SUPERVISOR, do_read_satp, "TVM traps satp of S-mode");
    check_illegal(SUPERVISOR, do_wfi, "TW traps wfi of S-mode");
    csr_clear(mstatus, MSTATUS_TSR | MSTATUS_TVM | MSTATUS_TW);
    check_legal(SUPERVISOR, do_sfence, "without TVM S-mode may sfence.vma");
    check_legal(SUPERVISOR, do_read_satp, "without TVM S-mode may read satp");

    csr_write(mcounteren, 0);
    csr_write(scounteren, 7);
    check_illegal(SUPERVISOR, do_read_time, "mcounteren keeps time from S-mode");
    check_illegal(USER, do_read_cycle, "mcounteren keeps cycle from U-mode");
    csr_write(mcounteren, 7);
    check_legal(SUPERVISOR, do_read_time, "mcounteren lets S-mode read time");
    check_legal(USER, do_read_cycle, "both counterens let U-mode read cycle");
    csr_write(scounteren, 0);
    check_illegal(USER, do_read_time, "scounteren keeps time from U-mode");
    check_legal(SUPERVISOR, do_read_time, "scounteren does not bind S-mode");

    csr_clear(mstatus, MSTATUS_FS);
    check_illegal(USER, do_float, "FS = Off makes floating point illegal");
    csr_set(mstatus, 1 << 13);
    run(USER, do_float, 0x3ff0000000000000, 0);
    check_equal(trapped.a[1], 0x4000000000000000, "FS = Initial makes it legal");
    check_equal(trapped.mstatus & MSTATUS_FS, MSTATUS_FS, "and using it makes FS Dirty");
    check_equal(trapped.mstatus >> 63, 1, "which SD repeats");
    run(USER, do_set_frm, 0, 0);
    check_equal(trapped.cause, ILLEGAL, "a reserved rounding mode in frm makes arithmetic illegal");
    csr_write(fcsr, 0);
}

static void access_faults(void)
{
    run(MACHINE, do_load, HOLE, 0);
    check_trap(LOAD_ACCESS, (u64)do_load, HOLE, "a load from nowhere is cause 5, with its address");
    run(MACHINE, do_store, HOLE + 8, 0);
    check_trap(STORE_ACCESS, (u64)do_store, HOLE + 8, "a store to nowhere is cause 7, with its address");
    run(MACHINE, do_amo, HOLE, 0);
    check_trap(STORE_ACCESS, (u64)do_amo, HOLE, "an AMO on nowhere is cause 7");
    run(MACHINE, do_call, HOLE, 0);
    check_trap(FETCH_ACCESS, HOLE, HOLE, "a jump to nowhere is cause 1, at the target");
}

static void misaligned(void)
{
    u8 *odd = (u8 *)memory + 1;
    for (int i = 0; i < 32; i++)
        ((u8 *)memory)[i] = i;
    run(MACHINE, do_load, (u64)odd, 0);
    if (trapped.cause == LOAD_MISALIGNED)
        check_trap(LOAD_MISALIGNED, (u64)do_load, (u64)odd, "misaligned loads trap, with their address");
    else
        check_equal(trapped.a[1], 0x0807060504030201, "misaligned loads work");
    run(MACHINE, do_store, (u64)odd, 0x1122334455667788);
    if (trapped.cause == STORE_MISALIGNED)
        check_trap(STORE_MISALIGNED, (u64)do_store, (u64)odd, "misaligned stores trap, with their address");
    else
        check_equal(memory[0], 0x2233445566778800, "misaligned stores work");
    run(MACHINE, do_amo, (u64)memory + 4, 0);
    check(trapped.cause == STORE_MISALIGNED || trapped.cause == STORE_ACCESS, "a misaligned AMO is cause 6 or 7");
    check_equal(trapped.tval, (u64)memory + 4, "with its address");
    run(MACHINE, do_lr, (u64)memory + 4, 0);
    check(trapped.cause == LOAD_MISALIGNED || trapped.cause == LOAD_ACCESS, "a misaligned LR is cause 4 or 5");
    run(MACHINE, do_sc, (u64)memory + 4, 0);
    check(trapped.cause == STORE_MISALIGNED || trapped.cause == STORE_ACCESS, "a misaligned SC is cause 6 or 7");
    run(MACHINE, do_load_32, (u64)memory + 2, 0);
    check(trapped.cause == ECALL + MACHINE || trapped.cause == LOAD_MISALIGNED, "a misaligned lw works or traps");
}

/* An S-mode handler that hands its CSRs to M-mode: a0 = scause, a1 = sepc, a2 = stval, a3 = sstatus. */
CODE(supervisor_handler, "csrr a0, scause\ncsrr a1, sepc\ncsrr a2, stval\ncsrr a3, sstatus");

static void check_delegated(u64 cause, u64 epc, u64 tval, const char *name)
{
    int good = trapped.cause == ECALL + SUPERVISOR && trapped.epc == (u64)supervisor_handler + 16 &&
               trapped.a[0] == cause && trapped.a[1] == epc && trapped.a[2] == tval;
    check(good, name);
    if (!good)
        print("     cause %lx epc %lx; scause %lx sepc %lx stval %lx\n", trapped.cause, trapped.epc, trapped.a[0],
              trapped.a[1], trapped.a[2]);
}

static void delegation(void)
{
    csr_write(stvec, (u64)supervisor_handler);
    csr_write(medeleg, 1 << (ECALL + USER) | 1 << ILLEGAL | 1 << BREAKPOINT | 1 << LOAD_ACCESS);
    csr_set(mstatus, MSTATUS_SIE);
    run(USER, do_nothing, 0, 0);
    check_delegated(ECALL + USER, (u64)do_nothing, 0, "medeleg hands ecall of U-mode to S-mode");
    check_equal(trapped.a[3] & (MSTATUS_SPP | MSTATUS_SPIE | MSTATUS_SIE), MSTATUS_SPIE, "SPP is U, SIE moved to SPIE");
    run(SUPERVISOR, do_load, HOLE, 0);
    check_delegated(LOAD_ACCESS, (u64)do_load, HOLE, "and an access fault of S-mode, with its address");
    check_equal(trapped.a[3] & MSTATUS_SPP, MSTATUS_SPP, "SPP is S");
    run(MACHINE, do_load, HOLE, 0);
    check_trap(LOAD_ACCESS, (u64)do_load, HOLE, "but never one of M-mode");
    csr_write(medeleg, 0);
    csr_clear(mstatus, MSTATUS_SIE);
}

static void legal_values(void)
{
    u64 before = csr_read(satp);
    csr_write(satp, 5ul << 60 | 1);
    check_equal(csr_read(satp), before, "a write to satp with a reserved mode changes nothing");
    csr_write(mepc, 0x80000003);
    check_equal(csr_read(mepc), 0x80000002, "mepc keeps no odd address");
    csr_set(mstatus, MSTATUS_MPP);
    csr_clear(mstatus, 1ul << 11);
    check(((csr_read(mstatus) >> 11) & 3) != 2, "mstatus.MPP never holds the reserved 2");
    check_equal(csr_read(misa) & 0x8000000000141105, 0x8000000000141105, "misa says RV64IMACSU");
    csr_write(mscratch, -1ul);
    check_equal(csr_swap(mscratch, 5), -1ul, "csrrw reads the old value");
    check_equal(csr_read(mscratch), 5, "and writes the new one");
    csr_write(fcsr, 0xfff);
    check_equal(csr_read(fcsr), 0xff, "fcsr has 8 bits");
    csr_write(fcsr, 0);
    check_equal(csr_read(mhartid), 0, "the first hart is 0");
}

void main(u64 hart, const void *tree)
{
    (void)tree;
    if (hart)
        return;
    allow_all();
    environment_calls();
    breakpoints();
    illegal_instructions();
    access_faults();
    misaligned();
    delegation();
    legal_values();
    report();
}
