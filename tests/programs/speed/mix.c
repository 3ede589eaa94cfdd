/* What embedded programs do, in turns: sort and search a linked list, multiply matrices of integers, run a state machine
 * over text, and keep a CRC of all results. An iteration is one turn through the four. */
#include "speed.h"

#define ITERATIONS 5000ul
#define NODES 256
#define N 16
#define TEXT 512

void trap(u64 *frame) { print("trap at %lx\n", frame[0]), finish(2); }

static u32 crc(u32 state, u32 value)
{
    for (int bit = 0; bit < 32; bit++) {
        u32 low = (state ^ value) & 1;
        state >>= 1;
        if (low)
            state ^= 0xedb88320;
        value >>= 1;
    }
    return state;
}

struct node { struct node *next; int key, number; };
static struct node nodes[NODES];

static struct node *merge(struct node *a, struct node *b, int by_key)
{
    struct node head, *tail = &head;
    while (a && b) {
        int first = by_key ? a->key <= b->key : a->number <= b->number;
        struct node **from = first ? &a : &b;
        tail = tail->next = *from;
        *from = (*from)->next;
    }
    tail->next = a ? a : b;
    return head.next;
}

static struct node *sort(struct node *list, int by_key)
{
    if (!list || !list->next)
        return list;
    struct node *slow = list, *fast = list->next;
    while (fast && fast->next) {
        slow = slow->next;
        fast = fast->next->next;
    }
    struct node *second = slow->next;
    slow->next = 0;
    return merge(sort(list, by_key), sort(second, by_key), by_key);
}

static u32 work_list(u32 seed)
{
    struct node *list = 0;
    u64 random = seed + 1;
    for (int i = 0; i < NODES; i++) {
        random = scramble(random);
        nodes[i] = (struct node){list, random >> 40 & 0xffff, i};
        list = &nodes[i];
    }
    list = sort(list, 1);
    u32 found = 0;
    for (int wanted = 0; wanted < 16; wanted++)
        for (struct node *it = list; it; it = it->next)
            if ((it->key & 15) == wanted) {
                found += it->number;
                break;
            }
    struct node *reversed = 0;
    while (list) {
        struct node *next = list->next;
        list->next = reversed;
        reversed = list;
        list = next;
    }
    list = sort(reversed, 0);
    return found ^ list->key ^ list->next->key << 8;
}

static short a[N][N], b[N][N];
static int c[N][N];

static u32 work_matrix(u32 seed)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = (seed * (i + 1) + j) & 0xff;
            b[i][j] = (seed + i * j) & 0x7f;
        }
    u32 sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            int dot = 0;
            for (int k = 0; k < N; k++)
                dot += a[i][k] * b[k][j];
            c[i][j] = dot;
            sum += (dot >> 2 & 15) * (dot >> 5 & 127);
        }
    return sum;
}

enum state { START, SIGN, INTEGER, POINT, FRACTION, EXPONENT, EXPONENT_SIGN, SCIENTIFIC, WRONG, STATES };
static char text[TEXT];

static enum state advance(enum state state, char c)
{
    int digit = c >= '0' && c <= '9';
    switch (state) {
    case START: return digit ? INTEGER : c == '+' || c == '-' ? SIGN : c == '.' ? POINT : WRONG;
    case SIGN: return digit ? INTEGER : c == '.' ? POINT : WRONG;
    case INTEGER: return digit ? INTEGER : c == '.' ? POINT : c == 'e' ? EXPONENT : WRONG;
    case POINT:
    case FRACTION: return digit ? FRACTION : c == 'e' ? EXPONENT : WRONG;
    case EXPONENT: return digit ? SCIENTIFIC : c == '+' || c == '-' ? EXPONENT_SIGN : WRONG;
    case EXPONENT_SIGN:
    case SCIENTIFIC: return digit ? SCIENTIFIC : WRONG;
    default: return WRONG;
    }
}

static u32 work_text(u32 seed)
{
    static const char alphabet[] = "0123456789+-.e,,";
    u64 random = seed + 7;
    for (int i = 0; i < TEXT; i++) {
        random = scramble(random);
        text[i] = alphabet[random >> 33 & 15];
    }
    u32 ends[STATES] = {0};
    enum state state = START;
    for (int i = 0; i < TEXT; i++) {
        if (text[i] == ',') {
            ends[state]++;
            state = START;
        } else {
            state = advance(state, text[i]);
        }
    }
    u32 sum = 0;
    for (int i = 0; i < STATES; i++)
        sum = sum * 31 + ends[i];
    return sum;
}

void main(u64 hart, const void *tree)
{
    (void)tree;
    if (hart)
        return;
    u64 start = ticks();
    u32 state = 0xffffffff;
    for (u64 i = 0; i < ITERATIONS; i++) {
        state = crc(state, work_list(i));
        state = crc(state, work_matrix(i));
        state = crc(state, work_text(i));
    }
    result("mix", ITERATIONS, ticks() - start, state, 0xc127bc6ful);
    finish(0);
}
