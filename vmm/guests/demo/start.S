/* Where every hart starts: M-mode, a0 = hart number, a1 = device tree. Each gets a stack and a trap handler and calls
 * main(hart, device tree); one that returns from it sleeps. */

#define STACK_BITS 12
#define MAX_HARTS 32

    .section .text.start, "ax"
    .globl _start
_start:
    li      t0, MAX_HARTS
    bgeu    a0, t0, park
    la      gp, __global_pointer$
    la      sp, stacks
    addi    t0, a0, 1
    slli    t0, t0, STACK_BITS
    add     sp, sp, t0
    mv      tp, a0
    la      t0, trap_entry
    csrw    mtvec, t0
    li      t0, 1 << 13             /* mstatus.FS = Initial, for programs that compute with floats */
    csrs    mstatus, t0
    call    main
park:
    csrw    mie, zero
    wfi
    j       park

/* Calls trap(frame) with the general registers in an array by number, mepc in place of x0; resumes at the mepc that it
 * leaves there. A handler that trap() may call again for a nested trap is beyond what these programs need. */
    .balign 4
trap_entry:
    csrw    mscratch, sp
    addi    sp, sp, -256
    .irp n, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    sd      x\n, \n * 8(sp)
    .endr
    csrr    t0, mscratch
    sd      t0, 2 * 8(sp)
    csrr    t0, mepc
    sd      t0, 0(sp)
    mv      a0, sp
    call    trap
    ld      t0, 0(sp)
    csrw    mepc, t0
    .irp n, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    ld      x\n, \n * 8(sp)
    .endr
    ld      sp, 2 * 8(sp)
    mret

    .bss
    .balign 16
stacks:
    .skip   MAX_HARTS << STACK_BITS
