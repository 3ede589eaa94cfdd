#include "board.h"

#include <stdarg.h>

static void put(char c)
{
    while (!(UART(LSR) & LSR_THRE))
        ;
    UART(THR) = c;
}

static void put_padded(const char *text, int length, int width, int left, char pad)
{
    for (int i = length; !left && i < width; i++)
        put(pad);
    for (int i = 0; i < length; i++)
        put(text[i]);
    for (int i = length; left && i < width; i++)
        put(' ');
}

static int length_of(const char *text)
{
    int length = 0;
    while (text[length])
        length++;
    return length;
}

static void put_number(u64 value, u32 base, int negative, int apart, int width, int left, char pad)
{
    char digits[32], *end = digits + sizeof digits, *at = end;
    int count = 0;
    do {
        if (apart && count && count % 3 == 0)
            *--at = ',';
        *--at = "0123456789abcdef"[value % base];
        count++;
    } while (value /= base);
    if (negative)
        *--at = '-';
    put_padded(at, end - at, width, left, pad);
}

void print(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    for (; *format; format++) {
        if (*format == '\n')
            put('\r');
        if (*format != '%') {
            put(*format);
            continue;
        }
        int left = 0, apart = 0, width = 0;
        char pad = ' ';
        for (format++; *format == '-' || *format == '0' || *format == '\''; format++) {
            left |= *format == '-';
            apart |= *format == '\'';
            if (*format == '0')
                pad = '0';
        }
        for (; *format >= '0' && *format <= '9'; format++)
            width = 10 * width + *format - '0';
        int wide = *format == 'l';
        format += wide;
        if (*format == 's') {
            const char *text = va_arg(values, const char *);
            put_padded(text, length_of(text), width, left, ' ');
        } else if (*format == 'c') {
            put(va_arg(values, int));
        } else if (*format == 'd') {
            i64 value = wide ? va_arg(values, i64) : va_arg(values, int);
            put_number(value < 0 ? -(u64)value : (u64)value, 10, value < 0, apart, width, left, pad);
        } else {
            u64 value = wide ? va_arg(values, u64) : va_arg(values, u32);
            put_number(value, *format == 'x' ? 16 : 10, 0, apart, width, left, pad);
        }
    }
    va_end(values);
}

u32 big_endian(const void *cell)
{
    const u8 *b = cell;
    return (u32)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3];
}

static int starts_with(const char *text, const char *start)
{
    while (*start)
        if (*text++ != *start++)
            return 0;
    return 1;
}

/* Walks the flattened tree (Devicetree Specification 0.4, 5.4): counts the nodes that match, and with a property asked
 * for stops at the first of them that has it. */
static const void *walk(const void *tree, const char *node, const char *property, u32 *nodes)
{
    enum { BEGIN_NODE = 1, END_NODE = 2, PROPERTY = 3, NOP = 4 };
    const u8 *at = (const u8 *)tree + big_endian((const u8 *)tree + 8);
    const char *strings = (const char *)tree + big_endian((const u8 *)tree + 12);
    int matches = 0;
    for (*nodes = 0;;) {
        u32 token = big_endian(at);
        at += 4;
        if (token == BEGIN_NODE) {
            matches = starts_with((const char *)at, node);
            *nodes += matches;
            at += (length_of((const char *)at) + 4) & ~3;
        } else if (token == PROPERTY) {
            const char *name = strings + big_endian(at + 4);
            if (matches && property && starts_with(name, property) && length_of(name) == length_of(property))
                return at + 8;
            at += (8 + big_endian(at) + 3) & ~3;
        } else if (token != END_NODE && token != NOP) {
            return 0;
        }
    }
}

u32 tree_nodes(const void *tree, const char *node)
{
    u32 nodes;
    walk(tree, node, 0, &nodes);
    return nodes;
}

const void *tree_property(const void *tree, const char *node, const char *property)
{
    u32 nodes;
    return walk(tree, node, property, &nodes);
}

void finish(u32 code)
{
    FINISHER = code ? code << 16 | 0x3333 : 0x5555;
    for (;;)
        wfi();
}

void lock(spinlock *it)
{
    while (__atomic_exchange_n(&it->taken, 1, __ATOMIC_ACQUIRE))
        while (__atomic_load_n(&it->taken, __ATOMIC_RELAXED))
            ;
}

void unlock(spinlock *it)
{
    __atomic_store_n(&it->taken, 0, __ATOMIC_RELEASE);
}

void meet(barrier *it, u32 harts)
{
    u32 round = __atomic_load_n(&it->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&it->arrived, 1, __ATOMIC_ACQ_REL) == harts) {
        it->arrived = 0;
        __atomic_store_n(&it->round, round + 1, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(&it->round, __ATOMIC_ACQUIRE) == round)
        ;
}
