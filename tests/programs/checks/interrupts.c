/* Interrupts: CLINT software and timer, PLIC external by UART and RTC, WFI, priorities, delegation, Sstc, and inter-hart
 * interrupts between all harts (priv. spec 3.1.9, 3.3.3; PLIC specification 1.0). The first hart makes the checks. */
#include "check.h"

#define MSI (1ul << SOFTWARE)
#define MTI (1ul << TIMER)
#define MEI (1ul << EXTERNAL)
#define SSI (1ul << 1)
#define STI (1ul << 5)
#define SEI (1ul << 9)
#define RTC_SOURCE 11
#define RTC_ALARM_LOW (*(volatile u32 *)0x101008)
#define RTC_ALARM_HIGH (*(volatile u32 *)0x10100c)
#define RTC_IRQ_ENABLED (*(volatile u32 *)0x101010)
#define RTC_CLEAR_INTERRUPT (*(volatile u32 *)0x10101c)

CODE(do_spin, "1: j 1b");
CODE(do_ebreak, "ebreak");
CODE(do_wfi, "wfi");
CODE(do_nops, "nop\nnop\nnop\nnop");
CODE(supervisor_handler, "csrr a0, scause\ncsrr a1, sepc\ncsrr a2, sip");

static u64 mip_settled(u64 bit, int level)
{
    u64 patience = ticks() + TICKS_PER_SECOND / 4;
    while (!!(csr_read(mip) & bit) != level && ticks() < patience)
        ;
    return csr_read(mip) & bit;
}

static void software(void)
{
    csr_write(mie, 0);
    check_equal(csr_read(mip) & MSI, 0, "msip is 0 at first");
    CLINT_MSIP(0) = 1;
    check(mip_settled(MSI, 1), "writing msip raises mip.MSIP");
    check_equal(CLINT_MSIP(0), 1, "msip reads back");
    CLINT_MSIP(0) = 0xfffffffe;
    check(!mip_settled(MSI, 0), "only bit 0 of msip counts");
    csr_write(mie, MSI);
    CLINT_MSIP(0) = 1;
    run(SUPERVISOR, do_spin, 0, 0);
    check_trap(INTERRUPT | SOFTWARE, (u64)do_spin, 0, "S-mode is interrupted although mstatus.MIE is 0");
    csr_clear(mstatus, MSTATUS_MPIE);
    run(MACHINE, do_nops, 0, 0);
    check_equal(trapped.cause, ECALL + MACHINE, "M-mode with MIE 0 is not");
    csr_set(mstatus, MSTATUS_MPIE);
    run(MACHINE, do_nops, 0, 0);
    check_equal(trapped.cause, INTERRUPT | SOFTWARE, "M-mode with MIE 1 is");
    CLINT_MSIP(0) = 0;
    mip_settled(MSI, 0);
    csr_write(mie, 0);
}

static void timer(void)
{
    CLINT_MTIMECMP(0) = -1ul;
    check(!mip_settled(MTI, 0), "mtimecmp in the far future: no MTIP");
    CLINT_MTIMECMP(0) = 0;
    check(mip_settled(MTI, 1), "mtimecmp in the past: MTIP");
    u64 start = ticks();
    CLINT_MTIMECMP(0) = start + TICKS_PER_SECOND / 100;
    check(!(csr_read(mip) & MTI), "a new mtimecmp lowers MTIP");
    while (!(csr_read(mip) & MTI) && ticks() < start + TICKS_PER_SECOND)
        ;
    check(ticks() - start >= TICKS_PER_SECOND / 100, "MTIP rises no sooner than asked for");
    CLINT_MTIMECMP(0) = -1ul;
    u64 before = CLINT_MTIME;
    u32 low = *(volatile u32 *)&CLINT_MTIME;
    check(before <= ticks() && (u32)(low - (u32)before) < TICKS_PER_SECOND, "mtime is what rdtime reads, also as halves");
}

static void waiting(void)
{
    csr_write(mie, MTI);
    csr_clear(mstatus, MSTATUS_MIE);
    u64 start = ticks();
    CLINT_MTIMECMP(0) = start + TICKS_PER_SECOND / 50;
    while (!(csr_read(mip) & MTI) && ticks() < start + TICKS_PER_SECOND)
        wfi();
    check(ticks() - start < TICKS_PER_SECOND, "wfi with MIE 0 goes on when the timer is due");
    CLINT_MTIMECMP(0) = ticks() + TICKS_PER_SECOND / 50;
    csr_set(mstatus, MSTATUS_MPIE);
    run(MACHINE, do_wfi, 0, 0);
    check(trapped.cause == (INTERRUPT | TIMER) || trapped.cause == ECALL + MACHINE, "wfi with MIE 1 is interrupted");
    check(trapped.epc == (u64)do_wfi || trapped.epc == (u64)do_wfi + 4, "at the instruction behind it");
    CLINT_MTIMECMP(0) = -1ul;
    csr_write(mie, 0);
    csr_write(mie, MSI);
    CLINT_MSIP(0) = 1;
    wfi();
    check(1, "wfi with an interrupt pending does not wait");
    CLINT_MSIP(0) = 0;
    csr_write(mie, 0);
}

static void vectored(void)
{
    /* Slots 0 to 11 of a vector table, each an ecall: its address tells which one was taken. */
    static u32 table[16] __attribute__((aligned(256)));
    for (int i = 0; i < 16; i++)
        table[i] = 0x73;
    asm volatile("fence.i" ::: "memory");
    csr_write(stvec, (u64)table | 1);
    csr_write(mideleg, SSI);
    csr_write(mie, SSI);
    csr_set(mip, SSI);
    csr_set(mstatus, MSTATUS_SIE);
    run(SUPERVISOR, do_spin, 0, 0);
    check_equal(trapped.epc - (u64)table, 4, "vectored: interrupt 1 goes to the base + 4");
    csr_write(medeleg, 1 << BREAKPOINT);
    csr_clear(mip, SSI);
    run(SUPERVISOR, do_ebreak, 0, 0);
    check_equal(trapped.epc - (u64)table, 0, "vectored: exceptions go to the base");
    csr_write(medeleg, 0);
    csr_write(mideleg, 0);
    csr_write(mie, 0);
}

static void delegated(void)
{
    csr_write(stvec, (u64)supervisor_handler);
    csr_write(mideleg, SSI | STI | SEI);
    csr_write(mie, SSI | STI | SEI);
    csr_set(mstatus, MSTATUS_SIE);
    csr_set(mip, SSI | SEI);
    run(SUPERVISOR, do_spin, 0, 0);
    check_equal(trapped.a[0], INTERRUPT | 9, "mideleg: SEIP, set by M-mode, comes first in S-mode");
    csr_clear(mip, SEI);
    csr_set(mstatus, MSTATUS_SIE);
    run(SUPERVISOR, do_spin, 0, 0);
    check_equal(trapped.a[0], INTERRUPT | 1, "then SSIP");
    csr_clear(mstatus, MSTATUS_SIE);
    run(SUPERVISOR, do_nops, 0, 0);
    check_equal(trapped.cause, ECALL + SUPERVISOR, "S-mode with SIE 0 is not interrupted");
    run(USER, do_spin, 0, 0);
    check_equal(trapped.a[0], INTERRUPT | 1, "U-mode always is");
    csr_write(mideleg, 0);
    run(SUPERVISOR, do_spin, 0, 0);
    check_equal(trapped.cause, INTERRUPT | 1, "not delegated, SSIP goes to M-mode");
    csr_clear(mip, SSI);
    check_equal(csr_read(sip) & SSI, 0, "sip shows only what is delegated");
    csr_write(mideleg, SSI | STI | SEI);
}

/* Sstc (menvcfg.STCE): stimecmp drives STIP. Skipped where menvcfg does not keep the bit. */
static void supervisor_timer(void)
{
    csr_set(menvcfg, 1ul << 63);
    if (!(csr_read(menvcfg) >> 63)) {
        print("PASS (no Sstc here)\n");
        return;
    }
    csr_write(stimecmp, -1ul);
    csr_write(mcounteren, 7);
    check(!mip_settled(STI, 0), "stimecmp in the far future: no STIP");
    csr_set(mstatus, MSTATUS_SIE);
    csr_write(mie, STI);
    u64 start = ticks();
    csr_write(stimecmp, start + TICKS_PER_SECOND / 100);
    run(SUPERVISOR, do_spin, 0, 0);
    check(trapped.a[0] == (INTERRUPT | 5) && ticks() - start >= TICKS_PER_SECOND / 100, "stimecmp interrupts S-mode in time");
    csr_clear(mip, STI);
    check(csr_read(mip) & STI, "mip.STIP cannot be written then");
    csr_write(stimecmp, -1ul);
    check(!mip_settled(STI, 0), "a new stimecmp lowers STIP");
    csr_clear(menvcfg, 1ul << 63);
    csr_set(mip, STI);
    check(csr_read(mip) & STI, "without STCE M-mode can set STIP");
    csr_clear(mip, STI);
    csr_write(mie, 0);
}

static void raise_rtc(void)
{
    RTC_IRQ_ENABLED = 1;
    RTC_ALARM_HIGH = 0;
    RTC_ALARM_LOW = 1; /* long ago: the line is up at once, until cleared */
    for (u64 patience = ticks() + TICKS_PER_SECOND / 4; !(PLIC_PENDING(0) >> RTC_SOURCE & 1) && ticks() < patience;)
        ;
}

static void priorities(void)
{
    PLIC_PRIORITY(RTC_SOURCE) = 1;
    PLIC_ENABLE(PLIC_MACHINE(0), 0) = 1 << RTC_SOURCE;
    raise_rtc();
    CLINT_MSIP(0) = 1;
    CLINT_MTIMECMP(0) = 0;
    check(mip_settled(MEI, 1), "the RTC's alarm raises MEIP");
    csr_write(mie, MEI | MSI | MTI);
    run(SUPERVISOR, do_spin, 0, 0);
    check_equal(trapped.cause, INTERRUPT | EXTERNAL, "of three interrupts the external one comes first");
    RTC_CLEAR_INTERRUPT = 1;
    PLIC_CLAIM(PLIC_MACHINE(0)) = PLIC_CLAIM(PLIC_MACHINE(0));
    mip_settled(MEI, 0);
    run(SUPERVISOR, do_spin, 0, 0);
    check_equal(trapped.cause, INTERRUPT | SOFTWARE, "then the software one");
    CLINT_MSIP(0) = 0;
    mip_settled(MSI, 0);
    run(SUPERVISOR, do_spin, 0, 0);
    check_equal(trapped.cause, INTERRUPT | TIMER, "then the timer");
    CLINT_MTIMECMP(0) = -1ul;
    csr_write(mie, 0);
}

static void external(void)
{
    u32 machine = PLIC_MACHINE(0), supervisor = PLIC_SUPERVISOR(0);
    PLIC_PRIORITY(UART_SOURCE) = 1;
    PLIC_PRIORITY(RTC_SOURCE) = 1;
    PLIC_ENABLE(machine, 0) = 1 << UART_SOURCE | 1 << RTC_SOURCE;
    PLIC_THRESHOLD(machine) = 0;
    check_equal(PLIC_CLAIM(machine), 0, "a claim with nothing pending is 0");

    raise_rtc();
    UART(IER) = IER_THRI;
    u64 both = mip_settled(MEI, 1), pending = PLIC_PENDING(0);
    u32 first = PLIC_CLAIM(machine), second = PLIC_CLAIM(machine), third = PLIC_CLAIM(machine);
    UART(IER) = 0;
    check(both && pending == (1 << UART_SOURCE | 1 << RTC_SOURCE), "both lines up: MEIP, and both pending");
    check_equal(first, UART_SOURCE, "of equal priorities the lower source is claimed first");
    check_equal(second, RTC_SOURCE, "then the other");
    check_equal(third, 0, "then none");
    check(!mip_settled(MEI, 0), "MEIP falls when all is claimed");
    PLIC_CLAIM(machine) = UART_SOURCE;
    check(!mip_settled(MEI, 0), "a line that fell before completion is quiet");
    PLIC_CLAIM(machine) = RTC_SOURCE;
    check(mip_settled(MEI, 1), "a line that stays up is pending again when completed");

    RTC_CLEAR_INTERRUPT = 1;
    PLIC_CLAIM(machine) = PLIC_CLAIM(machine);
    PLIC_PRIORITY(RTC_SOURCE) = 2;
    raise_rtc();
    UART(IER) = IER_THRI;
    mip_settled(MEI, 1);
    first = PLIC_CLAIM(machine);
    second = PLIC_CLAIM(machine);
    UART(IER) = 0;
    RTC_CLEAR_INTERRUPT = 1;
    PLIC_CLAIM(machine) = first;
    PLIC_CLAIM(machine) = second;
    check_equal(first, RTC_SOURCE, "the higher priority is claimed first");
    check_equal(second, UART_SOURCE, "then the lower");

    raise_rtc();
    check(mip_settled(MEI, 1), "priority 2, threshold 0: MEIP");
    PLIC_THRESHOLD(machine) = 2;
    check(!mip_settled(MEI, 0), "a threshold equal to the priority masks it");
    PLIC_THRESHOLD(machine) = 1;
    check(mip_settled(MEI, 1), "a lower one does not");
    PLIC_PRIORITY(RTC_SOURCE) = 0;
    PLIC_THRESHOLD(machine) = 0;
    check(!mip_settled(MEI, 0), "priority 0 never interrupts");
    PLIC_PRIORITY(RTC_SOURCE) = 7;
    PLIC_THRESHOLD(machine) = 7;
    check(!mip_settled(MEI, 0), "the highest threshold masks all");
    PLIC_ENABLE(machine, 0) = 0;
    PLIC_THRESHOLD(machine) = 0;
    check(!mip_settled(MEI, 0), "a source that is not enabled does not interrupt");
    check_equal(PLIC_PENDING(0), 1 << RTC_SOURCE, "but stays pending");
    PLIC_ENABLE(machine, 0) = 1 << RTC_SOURCE;
    check(mip_settled(MEI, 1), "and interrupts when it is enabled");
    PLIC_ENABLE(machine, 0) = 0;
    PLIC_ENABLE(supervisor, 0) = 1 << RTC_SOURCE;
    PLIC_THRESHOLD(supervisor) = 0;
    check(mip_settled(SEI, 1), "S-mode's context raises SEIP");
    check(!mip_settled(MEI, 0), "and not MEIP");
    check_equal(PLIC_CLAIM(machine), 0, "a context does not claim what it has not enabled");
    check_equal(PLIC_CLAIM(supervisor), RTC_SOURCE, "S-mode's claims for itself");
    PLIC_CLAIM(supervisor) = UART_SOURCE;
    check(!mip_settled(SEI, 0), "completing another source does nothing");
    RTC_CLEAR_INTERRUPT = 1;
    PLIC_CLAIM(supervisor) = RTC_SOURCE;
    check(!mip_settled(SEI, 0), "line down and completed: all quiet");
    PLIC_ENABLE(supervisor, 0) = 0;
    PLIC_PRIORITY(UART_SOURCE) = 0xffffffff;
    check_equal(PLIC_PRIORITY(UART_SOURCE), 7, "priorities have 3 bits");
    PLIC_PRIORITY(0) = 1;
    check_equal(PLIC_PRIORITY(0), 0, "source 0 is none");
}

/* Every hart passes a token to the next by msip, sleeping in wfi meanwhile. */
#define LAPS 200
static u32 harts, token_moves;

static void sleep_for_token(u64 hart)
{
    while (!(csr_read(mip) & MSI))
        wfi();
    CLINT_MSIP(hart) = 0;
    mip_settled(MSI, 0);
}

static void pass_token(u64 hart)
{
    __atomic_fetch_add(&token_moves, 1, __ATOMIC_RELAXED);
    CLINT_MSIP(hart + 1 < harts ? hart + 1 : 0) = 1;
}

void main(u64 hart, const void *tree)
{
    csr_write(mie, MSI);
    if (hart) {
        for (int i = 0; i < LAPS; i++) {
            sleep_for_token(hart);
            if (!i)
                harts = tree_nodes(tree, "cpu@");
            pass_token(hart);
        }
        return;
    }
    harts = tree_nodes(tree, "cpu@");
    allow_all();
    software();
    timer();
    waiting();
    vectored();
    delegated();
    supervisor_timer();
    csr_write(mideleg, 0);
    priorities();
    external();
    csr_write(mie, MSI);
    u64 start = ticks();
    for (int i = 0; i < LAPS; i++) {
        pass_token(0);
        sleep_for_token(0);
    }
    u64 spent = ticks() - start;
    check_equal(token_moves, LAPS * (u64)harts, "a token went round all harts by inter-processor interrupts");
    print("ipi %u %lu\n", token_moves, spent);
    report();
}
