/* Runs the stubs of an instruction each on cases from stdin, and writes what they did to stdout. */
#include <stdint.h>
#include <stdio.h>

struct input { uint64_t stub, rm, rs1, rs2, f1, f2, f3; };
struct output { uint64_t rd, fd, flags; };

extern void (*const stubs[])(const struct input *, struct output *);

int main(void)
{
    struct input in;
    struct output out;

    while (fread(&in, sizeof in, 1, stdin) == 1) {
        stubs[in.stub](&in, &out);
        fwrite(&out, sizeof out, 1, stdout);
    }
    return 0;
}
