"""torch, in processes of its own: beside jax's threads it is several times slower."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

from . import CASES
from .case import Case


class Torch:
    """torch's contenders for one case after the other, eager and compiled.

    With AVX-512 its log1p takes six times as long as with AVX2, which is else the slower. So half
    of the processes are kept to that, and the fastest counts.
    """

    NAMES = ("torch", "torch.compile")

    def __init__(self, on_gpu: bool = False, processes: int = 4) -> None:
        context = multiprocessing.get_context("spawn")
        # Of each process its own: compiled with AVX-512 and with AVX2 in one, kernels have read
        # indices that were none.
        self._caches = tempfile.TemporaryDirectory()
        self._pipes = []
        for i in range(processes):
            ours, theirs = context.Pipe()
            arguments = theirs, on_gpu, i % 2 == 1, f"{self._caches.name}/{i}"
            context.Process(target=_serve_torch, args=arguments, daemon=True).start()
            self._pipes.append(ours)
        (self.version, *_) = [pipe.recv() for pipe in self._pipes]

    def prepare(self, case: Case, inputs: tuple) -> None:
        """Compiles the contenders of a case for these inputs."""
        self._ask("prepare", case.name, inputs)

    def result(self, name: str, kind: str) -> Any:
        """What a contender computes, as NumPy arrays."""
        return self._ask("result", name, kind)[0]

    def seconds(self, name: str, kind: str) -> list[float]:
        """How long one call takes in each process."""
        return self._ask("seconds", name, kind)

    def _ask(self, *question: Any) -> list:
        answers = []
        for pipe in self._pipes:
            pipe.send(question)
            answers.append(pipe.recv())
            if isinstance(answers[-1], Exception):
                raise answers[-1]
        return answers


def seconds_of_one(call: Callable[[], Any]) -> float:
    """How long a call takes once it has its caches and threads to itself.

    A contender's threads wait for more work, spinning, for some 20 ms after it; and those of the
    next, woken on one core, may take 5 ms to spread.
    """
    time.sleep(0.03)
    warm = time.perf_counter() + 0.01
    while True:
        started = time.perf_counter()
        call()
        if started > warm:
            return time.perf_counter() - started


def _serve_torch(pipe, on_gpu, on_avx2, cache):
    if on_avx2:
        os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    import torch

    pipe.send(torch.__version__)
    calls: dict = {}
    while True:
        try:
            task, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            if task == "prepare":
                name, inputs = arguments
                (case,) = (case for case in CASES if case.name == name)
                calls = _torch_calls(torch, case, inputs, "cuda" if on_gpu else "cpu")
                answer = None
            elif task == "seconds":
                answer = seconds_of_one(calls[tuple(arguments)])
            else:
                result = calls[tuple(arguments)]()
                parts = result if isinstance(result, tuple) else (result,)
                arrays = tuple(part.detach().cpu().numpy() for part in parts)
                answer = arrays if isinstance(result, tuple) else arrays[0]
        except Exception as error:  # whatever it is, the asker raises it
            answer = RuntimeError(f"torch: {error}")
        pipe.send(answer)


def _torch_calls(torch, case, inputs, device):
    pred, *rest = (torch.from_numpy(x).to(device) for x in inputs)
    wanting = pred.clone().requires_grad_()

    def formula(pred, *rest):
        return case.torch(torch, pred, *rest)

    def finished(result):
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    torch._dynamo.reset()
    calls = {}
    for name, function in {"torch": formula, "torch.compile": torch.compile(formula)}.items():

        def value(function=function):
            with torch.no_grad():
                return finished(function(pred, *rest))

        def both(function=function):
            result = function(wanting, *rest)
            return finished((result, *torch.autograd.grad(result, wanting)))

        calls[name, "value"], calls[name, "value+grad"] = value, both
    return calls
