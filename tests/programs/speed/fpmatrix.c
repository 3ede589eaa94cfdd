/* Products of 64 x 64 matrices of doubles. An iteration is one multiply-add. */
#include "speed.h"

#define N 64
#define PRODUCTS 120ul
static double a[N][N], b[N][N], c[N][N];

void trap(u64 *frame) { print("trap at %lx\n", frame[0]), finish(2); }

void main(u64 hart, const void *tree)
{
    (void)tree;
    if (hart)
        return;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (double)(i * j % 7) * 0.125;
            b[i][j] = (double)((i + 3 * j) % 5) - 1.5;
        }
    u64 start = ticks();
    for (u64 product = 0; product < PRODUCTS; product++) {
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                double sum = c[i][j] * 0.5;
                for (int k = 0; k < N; k++)
                    sum += a[i][k] * b[k][j];
                c[i][j] = sum;
            }
    }
    u64 spent = ticks() - start, bits = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            union { double value; u64 bits; } it = {c[i][j]};
            bits = scramble(bits + it.bits + 1);
        }
    result("fpmatrix", PRODUCTS * N * N * N, spent, bits, 0xbc6da3861b2c916aul);
    finish(0);
}
