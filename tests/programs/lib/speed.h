/* For programs that measure: one line "name iterations ticks", a tick being 100 ns of the guest's time. */
#ifndef SPEED_H
#define SPEED_H

#include "board.h"

static inline u64 scramble(u64 value)
{
    value ^= value << 13;
    value ^= value >> 7;
    return value ^ value << 17;
}

/* Print the line; a result other than the one that is right for all machines ends the run with exit code 1. */
static inline void result(const char *name, u64 iterations, u64 spent, u64 got, u64 right)
{
    print("%s %lu %lu\n", name, iterations, spent);
    if (got != right) {
        print("FAIL %s: computed %lx, not %lx\n", name, got, right);
        finish(1);
    }
}

#endif
