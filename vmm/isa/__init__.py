"""The instruction set: one table from which the decoder, the interpreter, the disassembler and the docs are made."""
