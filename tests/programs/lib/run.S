/* run(mode, pc, first, second): see check.h. The callee-saved registers wait on the stack, and its pointer in memory. */
    .text
    .globl run, run_ends
run:
    addi    sp, sp, -128
    .irp n, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27
    sd      x\n, (\n - 18) * 8 + 16(sp)
    .endr
    sd      ra, 96(sp)
    sd      gp, 104(sp)
    sd      tp, 112(sp)
    sd      s0, 0(sp)
    sd      s1, 8(sp)
    la      t0, stack_of_run
    sd      sp, 0(t0)
    li      t0, 3 << 11
    csrc    mstatus, t0
    slli    a0, a0, 11
    csrs    mstatus, a0
    csrw    mepc, a1
    mv      a0, a2
    mv      a1, a3
    mret
run_ends:
    la      t0, stack_of_run
    ld      sp, 0(t0)
    ld      ra, 96(sp)
    ld      gp, 104(sp)
    ld      tp, 112(sp)
    ld      s0, 0(sp)
    ld      s1, 8(sp)
    .irp n, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27
    ld      x\n, (\n - 18) * 8 + 16(sp)
    .endr
    addi    sp, sp, 128
    la      t0, trapped
    ld      a0, 0(t0)
    ret

    .balign 4096
    .globl snippets, do_nothing, do_load, do_store, do_call
snippets:
do_nothing:
    ecall
do_load:
    ld      a1, 0(a0)
    ecall
do_store:
    sd      a1, 0(a0)
    ecall
do_call:
    jr      a0
    .balign 4096

    .bss
    .balign 8
stack_of_run:
    .skip   8
