"""Native code made by Python: LLVM text (`ir`), compilation (`llvm`), loading (`image`) and the code cache (`cache`).

Only `llvm` imports llvmlite, and only when code must really be generated: a warm start loads a cached image.
"""
