/* Copying 64 KiB back and forth, eight bytes at a time. An iteration is one copy of a doubleword. */
#include "speed.h"

#define WORDS 8192
#define COPIES 8000ul
static u64 one[WORDS], other[WORDS];

void trap(u64 *frame) { print("trap at %lx\n", frame[0]), finish(2); }

static void copy(volatile u64 *to, const volatile u64 *from)
{
    for (int i = 0; i < WORDS; i++)
        to[i] = from[i];
}

void main(u64 hart, const void *tree)
{
    (void)tree;
    if (hart)
        return;
    u64 seed = 1;
    for (int i = 0; i < WORDS; i++)
        one[i] = seed = scramble(seed);
    u64 start = ticks();
    for (u64 i = 0; i < COPIES / 2; i++) {
        copy(other, one);
        copy(one, other);
    }
    u64 spent = ticks() - start, sum = 0;
    for (int i = 0; i < WORDS; i++)
        sum += other[i];
    result("copy", COPIES * WORDS, spent, sum, 0x8667942ce0ffa819ul);
    finish(0);
}
