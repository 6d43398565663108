"""What a compiled program does: the memory that it needs and the kernels that it has.

For tests of optimisations that look odd on purpose: undoing one must fail a test.
"""

import re
from collections.abc import Callable
from typing import Any

import jax

# XLA of jax 0.12 stores more in some programs, and rounds others in another way.
IS_JAX_0_10 = jax.__version_info__ < (0, 11)


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """The program of a jitted function of these arguments."""
    return jax.jit(function).lower(*arguments).compile()


def temporary_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """The memory that the program needs beside its arguments and its results."""
    return compiled(function, *arguments).memory_analysis().temp_size_in_bytes


def kernels(function: Callable[..., Any], *arguments: Any, kind: str = "fusion") -> int:
    """How many instructions of a kind the entry has, such as "fusion" or "custom-call"."""
    text = compiled(function, *arguments).as_text()
    entry = text[text.index("ENTRY ") :]
    return len(re.findall(rf"= [^=\n]*? {re.escape(kind)}\(", entry))
