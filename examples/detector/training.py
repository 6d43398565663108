"""Training: one jitted step for all batches, its state, and checkpoints."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tqdm import tqdm

from .heads import Heads
from .network import Detector
from .two_stages import TwoStageDetector

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-3
EMA_DECAY = 0.98
CHECKPOINTS = 10  # saved in the course of a run

State = dict[str, Any]


class Batches(Protocol):
    """Training batches by step number."""

    def train_batch(self, step: int) -> dict[str, Any]:
        """The batch of a step."""


def make_network(heads: Heads, rngs: nnx.Rngs) -> Detector | TwoStageDetector:
    """The network of the heads of one stage or of two."""
    if "roi_head" in heads:
        return TwoStageDetector(heads, rngs=rngs)
    return Detector(heads["bbox_head"], rngs=rngs)


class Trainer:
    """A detector: its state, its training step and its predictions."""

    def __init__(
        self,
        heads: Heads,
        steps: int,
        seed: int,
        sharding: jax.sharding.Sharding | None = None,
    ) -> None:
        """A trainer.

        Args:
          heads: The heads, whose losses are trained.
          steps: Length of the run, on which the learning rate schedule depends.
          seed: Of the initial weights, and of what two stages draw at each step.
          sharding: Where the state lies. None is the default device.
        """
        self.steps, self.sharding = steps, sharding
        warmup = max(1, steps // 20)
        schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, warmup, max(steps, 2))
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
        )
        self.ema = optax.ema(EMA_DECAY)

        def make_model() -> Detector | TwoStageDetector:
            # Keep "rbg". With the default generator, threefry, the initialisers take 2 s longer to
            # compile.
            return make_network(heads, rngs=nnx.Rngs(jax.random.key(seed, impl="rbg")))

        self.make_model, self.seed = make_model, seed
        abstract = nnx.eval_shape(make_model)
        self.graphdef, self.loss_names = nnx.graphdef(abstract), abstract.loss_names
        # All batches have one shape, so this is compiled once.
        self.step = jax.jit(self._step, donate_argnums=0)

    def initial_state(self) -> State:
        """The state before the first step."""

        # Keep the jit. Without it the operations are compiled one by one, 190 programs.
        @functools.partial(jax.jit, out_shardings=self.sharding)
        def make() -> State:
            params = nnx.state(self.make_model())
            return {
                "step": jnp.zeros((), jnp.int32),
                "params": params,
                "opt_state": self.optimizer.init(params),
                "ema_state": self.ema.init(params),
                "averaged": params,
                "history": jnp.zeros((self.steps, len(self.loss_names))),
            }

        return make()

    def _step(self, state: State, batch: dict[str, jax.Array]) -> State:
        """The state after a step on a batch."""

        def total_loss(params: nnx.State) -> tuple[jax.Array, jax.Array]:
            key = jax.random.fold_in(jax.random.key(self.seed), state["step"])
            losses = nnx.merge(self.graphdef, params).losses(batch, key)
            return sum(losses.values()), jnp.stack([losses[name] for name in self.loss_names])

        gradients, values = jax.grad(total_loss, has_aux=True)(state["params"])
        updates, opt_state = self.optimizer.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        averaged, ema_state = self.ema.update(params, state["ema_state"])
        return {
            "step": state["step"] + 1,
            "params": params,
            "opt_state": opt_state,
            "ema_state": ema_state,
            "averaged": averaged,  # The weights that are evaluated.
            "history": state["history"].at[state["step"]].set(values),
        }

    def train(self, state: State, dataset: Batches, checkpoints: ocp.CheckpointManager) -> State:
        """The state after the last step. It is saved then, and CHECKPOINTS times in the run."""
        first, interval = int(state["step"]), max(1, self.steps // CHECKPOINTS)
        with tqdm(
            total=self.steps, initial=first, unit="step", disable=jax.process_index() > 0
        ) as progress:

            def show(losses: jax.Array) -> None:
                values = losses.tolist()  # Waits for their step.
                progress.set_postfix(dict(zip(self.loss_names, values, strict=True)), refresh=False)
                progress.update()

            running: jax.Array | None = None
            for step in range(first, self.steps):
                state = self.step(state, dataset.train_batch(step))
                # Wait for the step before this one. Without that the bar would count steps that
                # are dispatched, which takes no time, and then stand still. A wait for this step
                # itself would leave the device idle until the next one is dispatched.
                if running is not None:
                    show(running)
                running = state["history"][step]
                if (step + 1) % interval == 0 or step + 1 == self.steps:
                    checkpoints.save(step + 1, args=ocp.args.StandardSave(state))
            if running is not None:
                show(running)
        return state

    def step_compilations(self) -> int:
        """How often the training step was compiled, which should be once."""
        return self.step._cache_size()

    def history(self, state: State) -> dict[str, list[float]]:
        """The value of each loss at every step, by the loss's name."""
        return dict(zip(self.loss_names, state["history"].T.tolist(), strict=True))

    def predictor(
        self, state: State, max_detections: int
    ) -> Callable[[np.ndarray], dict[str, jax.Array]]:
        """A function from an image uint8 (H, W, 3) to its detections: see `evaluation.detect`."""

        @jax.jit
        def predict(params: nnx.State, image: jax.Array) -> dict[str, jax.Array]:
            network = nnx.merge(self.graphdef, params)
            found, masks = network.detect(image[None], max_detections)
            rows = found._asdict() if masks is None else {**found._asdict(), "masks": masks}
            return {name: x[0] for name, x in rows.items()}

        return functools.partial(predict, state["averaged"])


def train_in_folder(
    trainer: Trainer, dataset: Batches, folder: Path, options: dict[str, Any]
) -> State:
    """The state after training, which continues from the folder's last checkpoint if it has one."""
    state = trainer.initial_state()
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    # Keep checkpoints synchronous. The next step reuses the memory of the state, which an
    # asynchronous write would still read.
    saving = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with ocp.CheckpointManager((folder / "checkpoints").resolve(), options=saving) as checkpoints:
        last = checkpoints.latest_step()
        if last is not None:
            state = checkpoints.restore(last, args=ocp.args.StandardRestore(state))
        return trainer.train(state, dataset, checkpoints)
