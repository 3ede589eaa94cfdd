"""Seeded random blocks of every user-mode instruction in the tables, on operands where instructions go wrong."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping

from tests.oracle.program import WINDOW_SIZE, Block, Item, op, windows
from vmm.isa.encoding import Flag, Instruction
from vmm.isa.table import INSTRUCTIONS, decode
from vmm.vcpu.native.fusion import PAIRS, Pair

U64 = (1 << 64) - 1
FFLAGS, FRM, FCSR = 1, 2, 3

_PRIVILEGED = frozenset({"ecall", "ebreak", "c.ebreak", "mret", "sret", "wfi", "sfence.vma"})
BLOCKS = frozenset({"cbo.inval", "cbo.clean", "cbo.flush", "cbo.zero"})
_GADGETS = frozenset({"lr.w", "lr.d", "sc.w", "sc.d", "auipc", "c.addi16sp"})
_IN_GADGETS = Flag.BRANCH | Flag.JAL | Flag.JALR | Flag.CSR
_MEMORY = Flag.LOAD | Flag.STORE | Flag.AMO
_SP = 2

INTEGERS: list[int] = sorted(
    {
        *(n & U64 for n in range(-3, 4)),
        *((1 << k) + d & U64 for k in (7, 8, 11, 12, 15, 16, 31, 32, 33, 52, 53, 62, 63) for d in (-1, 0, 1)),
        *(-(1 << k) + d & U64 for k in (7, 8, 11, 12, 15, 16, 31, 32, 33, 53) for d in (-1, 0, 1)),
        *(0x5555555555555555, 0xAAAAAAAAAAAAAAAA, 0x0123456789ABCDEF, 0x00FF00FF00FF00FF, 0x8000000080000000),
        *range(4, 64, 7),
    }
)


class _Format:
    """Random bit patterns of one format, as registers hold them."""

    def __init__(self, r: random.Random, width: int, fraction: int) -> None:
        self._r = r
        self._width, self._fraction = width, fraction
        self._bias = (1 << (width - fraction - 2)) - 1
        self._last = 0
        infinity = (2 * self._bias + 1) << fraction
        one = self._bias << fraction
        ends = [infinity - 1, infinity, infinity | 1 << (fraction - 1), infinity | 1, infinity | (1 << fraction) - 1]
        small = [0, 1, 2, (1 << fraction) - 1, 1 << fraction, (1 << fraction) + 1]  # around the smallest normal
        ones = [one - 1, one, one + 1, one + (1 << (fraction - 1)), (self._bias + 1) << fraction]
        # powers of 2, where integers end, and their neighbours; ties
        powers = [((self._bias + k) << fraction) + d for k in (23, 24, 31, 32, 52, 53, 63, 64) for d in (-1, 0, 1)]
        ties = [
            (self._bias + k - 1 << fraction) | (halves - (1 << k)) << fraction - k
            for k, halves in ((0, 1), (1, 3), (2, 5), (7, 255))
        ]
        signs = (0, 1 << (width - 1))
        self._edges = [sign | bits for bits in small + ones + ends + powers + ties for sign in signs]
        self._special = [sign | bits for bits in (0, 0, 1, one, *ends[1:4], infinity) for sign in signs]

    def runs(self, count: int) -> Iterator[int]:
        """Values in runs: some of nothing but zeros, infinities and NaNs, which meet nowhere else."""
        r = self._r
        while count > 0:
            special = r.random() < 0.15
            for _ in range(64):
                bits = r.choice(self._special) if special else self._value()
                if self._width == 32:
                    badly = r.random() < 0.06
                    bits |= (r.choice((0, 0xFFFFFFFE, 0x7FFFFFFF, r.getrandbits(32))) if badly else 0xFFFFFFFF) << 32
                yield bits
            count -= 64

    def _value(self) -> int:
        """An edge, a number near the last (sums cancel), one of middling size (products stay finite), or any."""
        r, fraction, width = self._r, self._fraction, self._width
        kind = r.random()
        if kind < 0.3:
            bits = r.choice(self._edges)
        elif kind < 0.5:
            near = r.choice((0, 0, 1, -1, 1 << fraction, -1 << fraction))
            bits = (self._last ^ r.randrange(2) << (width - 1)) + near & (1 << width) - 1
        elif kind < 0.8:
            trailing = r.getrandbits(fraction) if r.random() < 0.7 else r.getrandbits(8) << (fraction - 8)
            bits = r.randrange(2) << (width - 1) | self._bias + r.randrange(-70, 70) << fraction | trailing
        else:
            bits = r.getrandbits(width)
        self._last = bits
        return bits


class Pools:
    """Operands to draw runs from."""

    SIZE = 64 * 64

    def __init__(self, r: random.Random) -> None:
        self._r = r
        self.integers = self._pack(self._integer() for _ in range(self.SIZE))
        singles, doubles = list(_Format(r, 32, 23).runs(self.SIZE)), list(_Format(r, 64, 52).runs(self.SIZE))
        mixed = [r.choice(pair) for pair in zip(singles, doubles, strict=True)]
        self.floats = {"s": self._pack(singles), "d": self._pack(doubles), "mixed": self._pack(mixed)}

    def _integer(self) -> int:
        r = self._r
        kind = r.random()
        if kind < 0.45:
            return r.choice(INTEGERS)
        bits: int = r.getrandbits(64) >> (r.randrange(64) if kind < 0.75 else 0)
        return bits ^ U64 if kind < 0.6 else bits

    def _pack(self, values: Iterable[int]) -> bytes:
        return struct.pack(f"<{self.SIZE}Q", *values)

    def run(self, pool: bytes, count: int) -> bytes:
        start = 8 * self._r.randrange(self.SIZE - count)
        return pool[start : start + 8 * count]


class Row:
    """An instruction with its fields sorted by what is to be drawn for them."""

    def __init__(self, insn: Instruction) -> None:
        self.insn = insn
        self.name = insn.name
        self.is_fp = bool(insn.flags & Flag.FP)
        self.loads_x = bool(insn.flags & Flag.LOAD) and not self.is_fp
        self.registers = [
            (name, insn.is_fp_register(name), field.width == 3)
            for name, field in insn.operands.items()
            if name in ("rd", "rs1", "rs2", "rs3")
        ]
        self.others = [(name, f) for name, f in insn.operands.items() if name in ("aq", "rl", "pred", "succ")]
        self.rounds = "rm" in insn.operands
        # "c.addi rd, imm" and its like read what they write
        self.reads_rd = "rd" in insn.operands and any(
            insn.sources.get(source) == insn.operands["rd"] for source in ("rs1", "rs2")
        )
        imm = insn.operands.get("imm")
        self.immediates: list[int] = []
        if imm is not None:
            low = -(1 << (imm.width - 1)) if imm.signed else 0
            high = (1 << (imm.width - imm.signed)) - 1
            step = 1 << min(p.at for p in imm.pieces)
            self.immediates = list(range(low, high + 1, max(step, (high - low) // 4096 or 1))) + [high & -step] * 8
        self.size = _access_size(insn.base.name) if insn.flags & _MEMORY else 0
        self.sp_relative = self.size > 0 and "rs1" not in insn.operands


def _access_size(name: str) -> int:
    if "." in name:
        return 4 if name.endswith(".w") else 8
    return {"b": 1, "h": 2, "w": 4, "d": 8}[name.removeprefix("f").rstrip("u")[-1]]


class Generator:
    """Blocks from a seed. `without` names instructions that the oracle lacks."""

    def __init__(self, seed: int, without: Iterable[str] = ()) -> None:
        self._r = r = random.Random(seed)
        self._pools = Pools(r)
        skipped = _PRIVILEGED | set(without)
        single = INSTRUCTIONS.keys() - skipped - BLOCKS - _GADGETS
        rows = [Row(i) for name, i in INSTRUCTIONS.items() if name in single and not i.flags & _IN_GADGETS]
        self._inner = [row for row in rows if not (row.size or row.is_fp)]
        # In a block of singles, instructions on doubles would see little but NaNs.
        self._rows = {
            style: [row for row in rows if not (row.is_fp and row.name.endswith(useless))]
            for style, useless in {"s": (".d",), "d": (".s",), "mixed": ()}.items()
        }
        self._gadgets: list[Callable[[], Item]] = [
            self._skip, self._skip_compressed, self._link, self._indirect, self._backward, self._loop, self._reserved,
            self._lone_sc, self._fcsr, self._upper, self._move_sp,
        ]  # fmt: skip
        self._by_base: dict[tuple[str, int], list[Row]] = {}
        for row in rows:
            self._by_base.setdefault((row.insn.base.name, row.insn.length), []).append(row)
        self._cache_blocks = sorted(BLOCKS - skipped)
        if self._cache_blocks:
            self._gadgets.append(self._cache_block)

    # -- blocks -------------------------------------------------------------------------------------------------------

    def blocks(self, instructions: int) -> list[Block]:
        """At least so many instructions."""
        found = []
        while instructions > 0:
            found.append(self.block())
            instructions -= found[-1].instructions
        return found

    def block(self) -> Block:
        r = self._r
        style = r.choice(("s", "d", "mixed"))
        self._window = window = r.choice(windows())
        x = bytearray(self._pools.run(self._pools.integers, 31))
        self._pointers = pointers = self._place_pointers(window)
        for register, value in pointers.items():
            x[8 * register - 8 : 8 * register] = (value & U64).to_bytes(8, "little")
        f = self._pools.run(self._pools.floats[style], 32)
        memory = self._pools.run(r.choice((self._pools.integers, *self._pools.floats.values())), WINDOW_SIZE // 8)
        fcsr = r.choice((0, 0, 1, 2, 3, 4)) << 5 | (r.getrandbits(5) if r.random() < 0.3 else 0)
        self._unread: dict[bool, set[int]] = {False: set(), True: set()}
        self._kept: frozenset[int] = frozenset()
        rows = self._rows[style]
        items: list[Item] = []
        for _ in range(r.randrange(22, 34)):
            kind = r.random()
            if kind < 0.2:
                items.append(r.choice(self._gadgets)() if kind < 0.12 else self._fused())
                continue
            row = r.choice(rows)
            items.append((self._one(row),))
            if row.is_fp and not row.size and r.random() < 0.75:
                items.append((self._read_flags(),))
        return Block(bytes(x) + f + fcsr.to_bytes(8, "little") + memory, window, tuple(items))

    def _place_pointers(self, window: int) -> dict[int, int]:
        """Registers that hold addresses in or near the window: some aligned, for atomics, some far off or odd."""
        r = self._r
        chosen = [_SP, *r.sample(range(8, 16), 3)]
        chosen += r.sample([n for n in range(1, 32) if n not in chosen], 2)
        places = [
            window + 8 * r.randrange(4),
            window + 8 * r.randrange(8),
            window + r.randrange(64),
            window + 8 * r.randrange(WINDOW_SIZE // 8),
            window + 4 * r.randrange(WINDOW_SIZE // 4),
            window + r.randrange(-1900, 1900),
        ]
        return dict(zip(chosen, places, strict=True))

    # -- operands -----------------------------------------------------------------------------------------------------

    def _source(self, fp: bool, short: bool) -> int:
        """A register to read: any, and often one whose value nobody has looked at."""
        r = self._r
        unread = self._unread[fp]
        if unread and r.random() < 0.3:
            wanted = [n for n in unread if 8 <= n < 16] if short else list(unread)
            if wanted:
                n = r.choice(wanted)
                unread.discard(n)
                return n
        n = r.randrange(8, 16) if short else r.randrange(32)
        unread.discard(n)
        return n

    def _target(self, fp: bool, short: bool) -> int:
        """A register to write: not one whose value nobody has looked at, if there is another."""
        r = self._r
        unread = self._unread[fp]
        for _ in range(8):
            n = r.randrange(8, 16) if short else r.randrange(32)
            if n not in unread and (fp or (n not in self._pointers and n not in self._kept)):
                break
        else:
            n = next(
                m for m in (range(8, 16) if short else range(1, 32)) if fp or m not in {*self._pointers, *self._kept}
            )
        unread.add(n)
        return n

    def _one(self, row: Row) -> int:
        """One encoding of a row."""
        for _ in range(200):
            operands = self._draw(row)
            word = None if operands is None else _encode(row.insn, operands)
            if operands is not None and word is not None:
                if row.loads_x:
                    self._pointers.pop(operands["rd"], None)
                return word
        raise AssertionError(f"no encoding of {row.name}")

    def _draw(self, row: Row) -> dict[str, int] | None:
        """Operands, which may not be encodable: the same register twice more often than by chance."""
        r = self._r
        operands: dict[str, int] = {}
        if row.size:
            if not self._address(row, operands):
                return None
        elif row.immediates:
            operands["imm"] = r.choice(row.immediates)
        for name, fp, short in row.registers:
            if name in operands:
                continue
            if name != "rd":
                operands[name] = operands.get("rs1", 0) if r.random() < 0.08 else self._source(fp, short)
            elif row.reads_rd and not short and r.random() < 0.5 and not fp:
                unread = [n for n in self._unread[False] if n not in self._kept and n not in self._pointers]
                operands[name] = r.choice(unread) if unread else self._target(fp, short)
            else:
                operands[name] = self._target(fp, short)
                if row.loads_x and r.random() < 0.04:
                    operands[name] = self._spare_pointer(operands.get("rs1", _SP))
        if row.rounds:
            operands["rm"] = r.choice((0, 1, 2, 3, 4, 7, 7, 7, 7))
        for name, field in row.others:
            operands[name] = r.getrandbits(field.width)
        return operands

    def _spare_pointer(self, register: int) -> int:
        """`register` if it may be loaded into, and so lost as a pointer; another that may be written if not."""
        others = [n for n in self._pointers if n != register]
        if register != _SP and any(8 <= n < 16 for n in others):
            return register
        return self._target(False, True)

    def _address(self, row: Row, operands: dict[str, int]) -> bool:
        """A pointer and an immediate that meet in the window; False if this draw does not."""
        r = self._r
        if row.sp_relative:
            base = self._pointers[_SP]
        else:
            short = row.insn.operands["rs1"].width == 3
            operands["rs1"] = r.choice([n for n in self._pointers if not short or 8 <= n < 16])
            base = self._pointers[operands["rs1"]]
        size, window = row.size, self._window
        imm = row.insn.operands.get("imm")
        if imm is None:  # atomics: as the pointer is
            return base % size == 0 and window <= base <= window + WINDOW_SIZE - size
        step = 1 << min(p.at for p in imm.pieces)
        low = max(window, base - (1 << imm.width - 1 if imm.signed else 0))
        high = min(window + WINDOW_SIZE - size, base + (1 << imm.width - imm.signed) - step)
        if low > high:
            return False
        kind = r.random()
        if kind < 0.3:
            target = window + WINDOW_SIZE // 2 - r.randrange(size + 1)  # up to the page's end, or across it
        else:
            target = r.randrange(low, high + 1)
            if kind < 0.7:
                target &= -size
        operands["imm"] = (min(max(target, low), high) - base) // step * step
        return window <= base + operands["imm"] <= window + WINDOW_SIZE - size

    # -- what takes more than one instruction -------------------------------------------------------------------------

    def _plain(self, keep: Iterable[int] = ()) -> int:
        """An instruction on integer registers that leaves those of `keep` alone."""
        self._kept = frozenset(keep)
        word = self._one(self._r.choice(self._inner))
        self._kept = frozenset()
        return word

    def _some(self, low: int, high: int, keep: Iterable[int] = ()) -> list[int]:
        return [self._plain(keep) for _ in range(self._r.randrange(low, high + 1))]

    def _branch(self, distance: int, name: str | None = None, **known: int) -> int:
        """A comparison, of equal registers or with x0 more often than chance has it."""
        r = self._r
        rs1 = self._source(False, False)
        kind = r.random()
        rs2 = rs1 if kind < 0.2 else 0 if kind < 0.4 else self._source(False, False)
        name = name or r.choice(("beq", "bne", "blt", "bge", "bltu", "bgeu"))
        return op(name, **{"rs1": rs1, "rs2": rs2, **known}, imm=distance)

    def _fused(self) -> Item:
        """A pair that the software VCPU runs as one, mostly with the first's result as the operand that it expects."""
        r = self._r
        pair = r.choice(PAIRS)
        for _ in range(200):
            item = self._try_pair(pair, pair.via if r.random() < 0.8 else "")
            if item is not None:
                return item
        raise AssertionError(f"no encoding of {pair}")

    def _try_pair(self, pair: Pair, via: str) -> Item | None:
        r = self._r
        second = (pair.second, pair.second_length)
        flags = INSTRUCTIONS[pair.second].flags
        if flags & Flag.JALR:
            return self._try_jump(pair)
        first_rows = self._by_base[pair.first, pair.first_length]
        if via == "rs1" and flags & _MEMORY:  # an address
            return self._try_address(pair)
        first = self._one(r.choice(first_rows))
        rd = _written(first)
        if via and rd in (None, 0):
            return None
        if flags & (Flag.BRANCH | Flag.JAL):
            skipped = self._some(1, 2)
            distance = pair.second_length + _size(skipped)
            if pair.second_length == 4:
                return (first, self._branch(distance, pair.second, **({via: rd} if via and rd else {})), *skipped)
            name = {"beq": "c.beqz", "bne": "c.bnez", "jal": "c.j"}[pair.second]
            if name == "c.j":
                return (first, op(name, imm=distance), *skipped)
            rs1 = rd if via and rd else self._source(False, True)
            return (first, op(name, rs1=rs1, imm=distance), *skipped) if 8 <= rs1 < 16 else None
        row = r.choice(self._by_base[second])
        operands = self._draw(row)
        if operands is None:
            return None
        for name, field in row.insn.operands.items():
            if via and rd and field == row.insn.sources[via]:
                operands[name] = rd
        word = _encode(row.insn, operands)
        if word is None or _written(word) in self._pointers:
            return None
        return (first, word)

    def _try_address(self, pair: Pair) -> Item | None:
        """The first makes the address: a copy of a pointer, or a pointer moved."""
        r = self._r
        row = r.choice(self._by_base[pair.second, pair.second_length])
        source = _SP if row.sp_relative else r.choice([n for n in self._pointers if 8 <= n < 16])
        if pair.first == "add":
            pointer, moved = self._target(False, True), 0
            first = op("add", rd=pointer, rs1=source, rs2=0)
        elif source == _SP:
            pointer, moved = _SP, r.choice((-16, 16))
            first = op("c.addi16sp", imm=moved)
        else:
            pointer, moved = source, r.choice((-8, 8))
            first = op("c.addi", rd=pointer, imm=moved)
        before = dict(self._pointers)
        self._pointers[pointer] = before[source] + moved
        if 0 <= self._pointers[pointer] - self._window <= WINDOW_SIZE // 2:  # as far as all rows reach from there
            for _ in range(20):
                operands = self._draw(row)
                if operands and operands.get("rs1", _SP) == pointer and operands.get("rd") not in self._pointers:
                    word = _encode(row.insn, operands)
                    if word is not None:
                        return (first, word)
        self._pointers = before
        return None

    def _try_jump(self, pair: Pair) -> Item | None:
        """auipc makes the target; what is first in the pair is between it and the jump, or is it."""
        register = self._scratch()
        if pair.first == "auipc":
            skipped = self._some(0, 2)
            over = 8 + _size(skipped)
            return (
                op("auipc", rd=register),
                op("jalr", rd=self._target(False, False), rs1=register, imm=over),
                *skipped,
            )
        self._kept = frozenset({register})
        first = self._one(self._r.choice(self._by_base[pair.first, pair.first_length]))
        self._kept = frozenset()
        skipped = self._some(0, 2)
        jump = "c.jr" if 1 in self._pointers or register == 1 else self._r.choice(("c.jr", "c.jalr"))
        over = 4 + 4 + pair.first_length + 2 + _size(skipped)
        start = (op("auipc", rd=register), op("addi", rd=register, rs1=register, imm=over))
        return (*start, first, op(jump, rs1=register), *skipped)

    def _skip(self) -> Item:
        """A branch over a few instructions."""
        skipped = self._some(1, 3)
        return (self._branch(4 + _size(skipped)), *skipped)

    def _skip_compressed(self) -> Item:
        skipped = self._some(1, 3)
        distance = 2 + _size(skipped)
        name = self._r.choice(("c.beqz", "c.bnez", "c.j"))
        register = {} if name == "c.j" else {"rs1": self._source(False, True)}
        return (op(name, imm=distance, **register), *skipped)

    def _link(self) -> Item:
        skipped = self._some(0, 3)
        return (op("jal", rd=self._target(False, False), imm=4 + _size(skipped)), *skipped)

    def _indirect(self) -> Item:
        """auipc and a jump by that register, over a few instructions."""
        r = self._r
        skipped = self._some(0, 2)
        register = self._scratch()
        here = op("auipc", rd=register)
        kind = r.choice(("jalr", "c.jr", "c.jalr"))
        if kind == "jalr":
            over = 8 + _size(skipped)
            jump = op("jalr", rd=self._target(False, False), rs1=register, imm=over | r.randrange(2))
            return (here, jump, *skipped)
        if kind == "c.jalr" and 1 in self._pointers:
            kind = "c.jr"
        if kind == "c.jalr":
            self._unread[False].add(1)
        over = 4 + 4 + 2 + _size(skipped)
        return (here, op("addi", rd=register, rs1=register, imm=over), op(kind, rs1=register), *skipped)

    def _backward(self) -> Item:
        """A branch that may go back, to code that then leaves: each of its two ways ends up behind it."""
        back, rest = self._some(1, 2), self._some(0, 2)
        away = 4 + 4 + _size(rest)  # from the jump out of `back`, over the branch and the rest
        loop = _size(back) + 4
        return (
            op("jal", imm=4 + loop),
            *back,
            op("jal", imm=away),
            self._branch(-loop),
            *rest,
        )

    def _loop(self) -> Item:
        """A few times over some instructions."""
        r = self._r
        counter = self._scratch()
        body = self._some(1, 3, keep={counter})
        short = 8 <= counter < 16 and r.random() < 0.5
        down = op("addi", rd=counter, rs1=counter, imm=-1)
        distance = -(_size(body) + 4)
        again = op("c.bnez", rs1=counter, imm=distance) if short else op("bne", rs1=counter, rs2=0, imm=distance)
        return (op("addi", rd=counter, imm=r.randrange(1, 5)), *body, down, again)

    def _scratch(self) -> int:
        """A register for an address or a counter."""
        n = self._target(False, False)
        while n == 0:
            n = self._target(False, False)
        return n

    def _atomic_place(self, size: int) -> int | None:
        low, high = self._window, self._window + WINDOW_SIZE - size
        fit = [n for n, at in self._pointers.items() if at % size == 0 and low <= at <= high]
        return self._r.choice(fit) if fit else None

    def _order(self) -> dict[str, int]:
        return {"aq": self._r.randrange(2), "rl": self._r.randrange(2)}

    def _reserved(self) -> Item:
        """A reservation, something harmless, and a store that succeeds."""
        size = self._r.choice("wd")
        place = self._atomic_place(4 if size == "w" else 8)
        if place is None:
            return self._lone_sc()
        first = op(f"lr.{size}", rd=self._target(False, False), rs1=place, **self._order())
        between = self._some(0, 2)
        value = self._source(False, False)
        return (first, *between, op(f"sc.{size}", rd=self._target(False, False), rs1=place, rs2=value, **self._order()))

    def _lone_sc(self) -> Item:
        """A store without a reservation, or with one elsewhere."""
        r = self._r
        places = [n for n in self._pointers if self._pointers[n] % 8 == 0 and self._inside(self._pointers[n])]
        if not places:
            return (self._plain(),)
        place = r.choice(places)
        others = [n for n in places if self._pointers[n] != self._pointers[place]]
        store = op("sc.d", rd=self._target(False, False), rs1=place, rs2=self._source(False, False), **self._order())
        dropped = op("sc.w", rs1=place, rs2=0)
        if others and r.random() < 0.5:
            return (op("lr.d", rd=self._target(False, False), rs1=r.choice(others)), store)
        return (dropped, store) if r.random() < 0.5 else (store,)

    def _cache_block(self) -> Item:
        """Half of a window is a cache block, and any address in it names it."""
        inside = [n for n, at in self._pointers.items() if self._window <= at < self._window + WINDOW_SIZE]
        return (op(self._r.choice(self._cache_blocks), rs1=self._r.choice(inside)),)

    def _inside(self, address: int) -> bool:
        return self._window <= address <= self._window + WINDOW_SIZE - 8

    def _read_flags(self) -> int:
        """Read the flags, and mostly clear them: else one would hide another."""
        kind = self._r.randrange(4)
        if kind == 0:
            return op("csrrs", rd=self._target(False, False), imm=self._r.choice((FFLAGS, FCSR)))
        return op("csrrwi", rd=self._target(False, False), imm=FFLAGS)

    def _fcsr(self) -> Item:
        """Writes to the floating-point CSRs, which leave a valid rounding mode."""
        r = self._r
        name = r.choice(("csrrw", "csrrs", "csrrc", "csrrwi", "csrrsi", "csrrci"))
        csr = r.choice((FFLAGS, FRM, FCSR))
        rs1 = r.randrange(32) if name.endswith("i") else self._source(False, False)
        first = op(name, rd=self._target(False, False), rs1=rs1, imm=csr)
        last = op("csrrwi", rd=self._target(False, False), rs1=r.randrange(5), imm=FRM)
        return (first, last)

    def _upper(self) -> Item:
        return (op("auipc", rd=self._target(False, False), imm=self._r.randrange(-(1 << 19), 1 << 19)),)

    def _move_sp(self) -> Item:
        """The stack pointer away, seen there, and back."""
        imm = 16 * self._r.choice([n for n in range(-31, 32) if n])
        seen = op("c.mv", rd=self._scratch(), rs2=_SP)
        return (op("c.addi16sp", imm=imm), seen, op("c.addi16sp", imm=-imm))


def _written(word: int) -> int | None:
    """The integer register that an instruction writes."""
    insn = decode(word)
    assert insn is not None
    if "rd" not in insn.sources or insn.base.is_fp_register("rd"):
        return None
    return insn.sources["rd"].extract(word)


def _encode(insn: Instruction, operands: Mapping[str, int]) -> int | None:
    """The word, or None if the row does not have these operands."""
    word = insn.match
    try:
        for name, value in operands.items():
            word |= insn.operands[name].insert(value)
    except ValueError:
        return None
    return word if insn.matches(word) else None


def _size(words: Iterable[int]) -> int:
    return sum(4 if w & 3 == 3 else 2 for w in words)
