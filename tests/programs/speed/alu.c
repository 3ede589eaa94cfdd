/* A hot loop of integer arithmetic in registers: seven instructions, one of them the branch. */
#include "speed.h"

#define ITERATIONS 100000000ul

void trap(u64 *frame) { print("trap at %lx\n", frame[0]), finish(2); }

void main(u64 hart, const void *tree)
{
    (void)tree;
    if (hart)
        return;
    u64 start = ticks(), a = 1, b = 2, count = ITERATIONS;
    asm volatile("1: add %0, %0, %1\n"
                 "xor %1, %1, %0\n"
                 "slli t0, %0, 3\n"
                 "srli t1, %1, 5\n"
                 "add %1, t0, t1\n"
                 "addi %2, %2, -1\n"
                 "bnez %2, 1b"
                 : "+r"(a), "+r"(b), "+r"(count)::"t0", "t1");
    result("alu", ITERATIONS, ticks() - start, a ^ b, 0x1698a14f78d8a9aul);
    finish(0);
}
