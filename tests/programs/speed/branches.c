/* Conditional branches that depend on data, in a loop that fits a page. */
#include "speed.h"

#define ITERATIONS 20000000ul

void trap(u64 *frame) { print("trap at %lx\n", frame[0]), finish(2); }

void main(u64 hart, const void *tree)
{
    (void)tree;
    if (hart)
        return;
    u64 start = ticks(), value = 1, odd = 0, small = 0, runs = 0, last = 0;
    for (u64 i = 0; i < ITERATIONS; i++) {
        value = scramble(value);
        asm volatile("" : "+r"(value), "+r"(odd), "+r"(small), "+r"(runs), "+r"(last)); /* keeps them branches */
        if (value & 1)
            odd++;
        else
            odd += 2;
        if ((i64)value < 0) {
            asm volatile("" : "+r"(small));
            small += value >> 60;
        }
        if ((value & 6) == last)
            runs += last;
        else
            last = value & 6;
    }
    result("branches", ITERATIONS, ticks() - start, odd ^ small << 20 ^ runs << 40, 0xe4e90da25c79bad3ul);
    finish(0);
}
