"""torch in processes of its own: next to JAX's threads it is several times slower."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from . import CASES
from .case import Case, Inputs


class Torch:
    """torch's contenders, eager and compiled, for one case after the other.

    Half of the processes use AVX2 only, and the fastest process counts. With AVX-512 torch's log1p
    takes six times as long as with AVX2, while other functions are faster with AVX-512.
    """

    NAMES = ("torch", "torch.compile")

    def __init__(self, on_gpu: bool = False, processes: int = 4) -> None:
        context = multiprocessing.get_context("spawn")
        # Keep one cache for each process. When kernels compiled with AVX-512 and with AVX2 were in
        # the same cache, some read out of bounds.
        self._caches = tempfile.TemporaryDirectory()
        self._pipes = []
        for i in range(processes):
            ours, theirs = context.Pipe()
            arguments = theirs, on_gpu, i % 2 == 1, f"{self._caches.name}/{i}"
            context.Process(target=_serve_torch, args=arguments, daemon=True).start()
            self._pipes.append(ours)
        (self.version, *_) = [pipe.recv() for pipe in self._pipes]

    def prepare(self, case: Case, inputs: Inputs) -> None:
        """Compile the contenders of a case for these inputs."""
        self._ask("prepare", case.name, inputs)

    def result(self, name: str, kind: str) -> Any:
        """The result of a contender, as NumPy arrays."""
        return self._ask("result", name, kind)[0]

    def seconds(self, name: str, kind: str) -> list[float]:
        """The seconds that one call takes, in each process."""
        return self._ask("seconds", name, kind)

    def _ask(self, *question: Any) -> list[Any]:
        """The answers of all processes to a question."""
        answers: list[Any] = []
        for pipe in self._pipes:
            pipe.send(question)
            answers.append(pipe.recv())
            if isinstance(answers[-1], Exception):
                raise answers[-1]
        return answers


def seconds_of_call(call: Callable[[], Any]) -> float:
    """The seconds that a call takes once it has caches and threads to itself.

    It is called for 10 ms before it is timed. Keep both waits: the threads of the contender before
    spin for some 20 ms while they wait for more work, and those of this one, which wake on one
    core, may take 5 ms to spread over the cores.
    """
    time.sleep(0.03)
    warm = time.perf_counter() + 0.01
    while True:
        started = time.perf_counter()
        call()
        if started > warm:
            return time.perf_counter() - started


def _serve_torch(pipe: Connection, on_gpu: bool, on_avx2: bool, cache: str) -> None:
    """Answer the questions that come through a pipe, until it is closed."""
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
                answer: Any = None
            elif task == "seconds":
                answer = seconds_of_call(calls[tuple(arguments)])
            else:
                result = calls[tuple(arguments)]()
                parts = result if isinstance(result, tuple) else (result,)
                arrays = tuple(part.detach().cpu().numpy() for part in parts)
                answer = arrays if isinstance(result, tuple) else arrays[0]
        except Exception as error:  # The process that asked raises it.
            answer = RuntimeError(f"torch: {error}")
        pipe.send(answer)


def _torch_calls(
    torch: Any, case: Case, inputs: Inputs, device: str
) -> dict[tuple[str, str], Callable[[], Any]]:
    """torch's contenders for a case, by name and kind."""
    pred, *rest = (torch.from_numpy(x).to(device) for x in inputs)
    pred_with_grad = pred.clone().requires_grad_()

    def formula(pred: Any, *rest: Any) -> Any:
        return case.torch(torch, pred, *rest)

    def finished(result: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    torch._dynamo.reset()
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, function in {"torch": formula, "torch.compile": torch.compile(formula)}.items():

        def value(function: Callable[..., Any] = function) -> Any:
            with torch.no_grad():
                return finished(function(pred, *rest))

        def value_and_grad(function: Callable[..., Any] = function) -> Any:
            result = function(pred_with_grad, *rest)
            return finished((result, *torch.autograd.grad(result, pred_with_grad)))

        calls[name, "value"], calls[name, "value+grad"] = value, value_and_grad
    return calls
