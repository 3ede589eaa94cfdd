/* Calls FUNCTIONS generated functions in turns, CALLS times in all. An iteration is one call. */
#include "speed.h"

extern u64 (*const branchy[FUNCTIONS])(u64);

void trap(u64 *frame) { print("trap at %lx\n", frame[0]), finish(2); }

void main(u64 hart, const void *tree)
{
    (void)tree;
    if (hart)
        return;
    u64 start = ticks(), value = 1;
    for (u64 call = 0, next = 0; call < CALLS; call++) {
        value = branchy[next](value);
        if (++next == FUNCTIONS)
            next = 0;
    }
    result(NAME, CALLS, ticks() - start, value, RIGHT);
    finish(0);
}
