/* For programs that check one hart's architecture: PASS and FAIL lines, and code run at any privilege until it traps. */
#ifndef CHECK_H
#define CHECK_H

#include "board.h"

enum mode { USER = 0, SUPERVISOR = 1, MACHINE = 3 };
enum cause {
    FETCH_ACCESS = 1, ILLEGAL = 2, BREAKPOINT = 3, LOAD_MISALIGNED = 4, LOAD_ACCESS = 5, STORE_MISALIGNED = 6,
    STORE_ACCESS = 7, ECALL = 8, FETCH_PAGE = 12, LOAD_PAGE = 13, STORE_PAGE = 15,
};
#define MSTATUS_SIE (1ul << 1)
#define MSTATUS_SPIE (1ul << 5)
#define MSTATUS_MPIE (1ul << 7)
#define MSTATUS_SPP (1ul << 8)
#define MSTATUS_MPP (3ul << 11)
#define MSTATUS_FS (3ul << 13)
#define MSTATUS_MPRV (1ul << 17)
#define MSTATUS_SUM (1ul << 18)
#define MSTATUS_MXR (1ul << 19)
#define MSTATUS_TVM (1ul << 20)
#define MSTATUS_TW (1ul << 21)
#define MSTATUS_TSR (1ul << 22)

/* The trap that ended the last run(): CSRs, the privilege it came from, and registers a0 to a7 at that time. */
extern struct trapped {
    u64 cause, epc, tval, mstatus;
    enum mode from;
    u64 a[8];
} trapped;

/* Run code at `pc` in `mode` with two arguments in a0 and a1, until it traps to M-mode; fills `trapped`, answers its
 * cause. The stack pointer is the caller's. */
u64 run(enum mode mode, const void *pc, u64 first, u64 second);

/* Code for run(): assembly text with an ecall after it. The first few share a page that holds nothing else, so that page
 * tables can show it at several addresses. */
#define CODE(name, text) \
    asm(".text\n.balign 4\n.globl " #name "\n" #name ":\n" text "\necall\n"); \
    extern const char name[]
extern const char snippets[];
extern const char do_nothing[];
extern const char do_load[], do_store[]; /* 64 bits at a0 into, or from, a1 */
extern const char do_call[];             /* to a0, which holds an ecall, if it can be reached */

/* One line, and the count that report() turns into the exit code. */
void check(int good, const char *name);
void check_equal(u64 got, u64 wanted, const char *name);
void check_trap(u64 cause, u64 epc, u64 tval, const char *name); /* of the last run() */
void report(void) __attribute__((noreturn));

/* Let S- and U-mode reach all of memory (PMP entry 15, the last to match). */
void allow_all(void);

#endif
