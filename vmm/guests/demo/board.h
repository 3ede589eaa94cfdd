/* The `virt` board as a bare-metal program sees it: its devices, and the little that such programs need of a library. */
#ifndef BOARD_H
#define BOARD_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

#define MAX_HARTS 32
#define TICKS_PER_SECOND 10000000ul

/* Registers, by device. */
#define FINISHER (*(volatile u32 *)0x100000)
#define RTC_TIME_LOW (*(volatile u32 *)0x101000) /* nanoseconds since 1970; reading it latches the high half */
#define RTC_TIME_HIGH (*(volatile u32 *)0x101004)
#define CLINT_MSIP(hart) (((volatile u32 *)0x2000000)[hart])
#define CLINT_MTIMECMP(hart) (((volatile u64 *)0x2004000)[hart])
#define CLINT_MTIME (*(volatile u64 *)0x200bff8)
#define PLIC_PRIORITY(source) (((volatile u32 *)0xc000000)[source])
#define PLIC_PENDING(word) (((volatile u32 *)0xc001000)[word])
#define PLIC_ENABLE(context, word) (((volatile u32 *)(0xc002000 + 0x80 * (u64)(context)))[word])
#define PLIC_THRESHOLD(context) (*(volatile u32 *)(0xc200000 + 0x1000 * (u64)(context)))
#define PLIC_CLAIM(context) (*(volatile u32 *)(0xc200004 + 0x1000 * (u64)(context)))
#define PLIC_MACHINE(hart) (2 * (hart))
#define PLIC_SUPERVISOR(hart) (2 * (hart) + 1)
#define UART(offset) (((volatile u8 *)0x10000000)[offset])
#define UART_SOURCE 10

enum uart { THR = 0, RBR = 0, IER = 1, IIR = 2, FCR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCR = 7 };
enum uart_bits { IER_THRI = 2, LSR_DR = 1, LSR_THRE = 0x20, LSR_TEMT = 0x40 };

enum interrupt { SOFTWARE = 3, TIMER = 7, EXTERNAL = 11 }; /* bits of mie and mip, and causes, for M-mode */
#define MSTATUS_MIE (1ul << 3)
#define INTERRUPT (1ul << 63)

#define csr_read(name) ({ u64 _v; asm volatile("csrr %0, " #name : "=r"(_v)); _v; })
#define csr_write(name, value) asm volatile("csrw " #name ", %0" ::"rK"((u64)(value)) : "memory")
#define csr_swap(name, value) \
    ({ u64 _v; asm volatile("csrrw %0, " #name ", %1" : "=r"(_v) : "rK"((u64)(value)) : "memory"); _v; })
#define csr_set(name, bits) asm volatile("csrs " #name ", %0" ::"rK"((u64)(bits)) : "memory")
#define csr_clear(name, bits) asm volatile("csrc " #name ", %0" ::"rK"((u64)(bits)) : "memory")
#define fence() asm volatile("fence" ::: "memory")
#define wfi() asm volatile("wfi" ::: "memory")

static inline u64 ticks(void) { return csr_read(time); }

/* Given by the program. */
void main(u64 hart, const void *device_tree);
void trap(u64 *frame); /* frame[0] is mepc, frame[n] register n */

/* Printing: %s %c %u %d %x, also %lu %ld %lx, with a width, '-' for left, '0' for zeros, '\'' for thousands apart.
 * Not locked. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The device tree: how many nodes have a name that starts so, and a property of the first of them, or 0. */
u32 tree_nodes(const void *tree, const char *node);
const void *tree_property(const void *tree, const char *node, const char *property);
u32 big_endian(const void *cell);

void finish(u32 code) __attribute__((noreturn)); /* power off; 0 is success */

typedef struct { u32 taken; } spinlock;
void lock(spinlock *);
void unlock(spinlock *);

/* All `harts` wait here for each other. */
typedef struct { u32 arrived, round; } barrier;
void meet(barrier *, u32 harts);

#endif
