"""A pytest plugin (see conftest.py): what makes the tests faster, and what each thing saves.

Most of the time is compilation, of programs that run once. The passes over the HLO stay as users
have them. With XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true" in
the environment everything is as users have it.

Measured by user CPU time (jax 0.10.2, some laws and golden files, in turns), without the one thing:
"""

import os
from importlib.metadata import version

FLAGS = [
    "--xla_backend_optimization_level=0",  # + 15 %: LLVM optimizes programs that run once
]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    # + 45 %: MLIR's passes for each fusion. From 0.11 on XLA has no other emitters.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")

# Of a flag that is given twice the last counts.
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])
