"""Training: one jitted step for all batches, its state, checkpoints on the way."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tqdm import tqdm

from visdet_jax.detectors import DETROutputs, Head

from .data import Dataset
from .network import Detector
from .postprocess import best, select

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-3
EMA_DECAY = 0.98
CHECKPOINTS = 10  # saved on the way


class Trainer:
    """A detector of one head: its state, its training step, its predictions."""

    def __init__(
        self, head: Head, steps: int, seed: int, sharding: jax.sharding.Sharding | None = None
    ):
        """`sharding`: where the state lies, if not on the one device."""
        self.head, self.steps, self.sharding = head, steps, sharding
        self.loss_names = list(head.init())  # those shown: of DETR's layers the last one's
        warmup = max(1, steps // 20)
        schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, warmup, max(steps, 2))
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
        )
        self.ema = optax.ema(EMA_DECAY)

        def make_model() -> Detector:
            # with the default generator, threefry, the initialisers take 2 s longer to compile
            return Detector(head, rngs=nnx.Rngs(jax.random.key(seed, impl="rbg")))

        self.make_model = make_model
        self.graphdef = nnx.graphdef(nnx.eval_shape(make_model))
        # One shape in, so one compilation.
        self.step = jax.jit(self._step, donate_argnums=0)

    def initial_state(self) -> dict:
        """The state before the first step."""

        # op by op, this is 190 small compilations
        @functools.partial(jax.jit, out_shardings=self.sharding)
        def make() -> dict:
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

    def _step(self, state: dict, batch: dict[str, jax.Array]) -> dict:
        """State and batch to the next state."""

        def total_loss(params: nnx.State) -> tuple[jax.Array, jax.Array]:
            count, *shape, _ = batch["images"].shape
            outputs = nnx.merge(self.graphdef, params)(batch["images"])
            shapes = jnp.broadcast_to(jnp.array(shape), (count, 2))
            losses = self.head.loss(outputs, batch["boxes"], batch["labels"], shapes)
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
            "averaged": averaged,  # the weights that are evaluated
            "history": state["history"].at[state["step"]].set(values),
        }

    def train(self, state: dict, dataset: Dataset, checkpoints: ocp.CheckpointManager) -> dict:
        """The state after the last step; it is saved there and on the way."""
        first, interval = int(state["step"]), max(1, self.steps // CHECKPOINTS)
        with tqdm(
            total=self.steps, initial=first, unit="step", disable=jax.process_index() > 0
        ) as progress:
            for step in range(first, self.steps):
                state = self.step(state, dataset.train_batch(step))
                progress.update()
                if (step + 1) % 10 == 0:  # reading the losses waits for the step: not every time
                    values = state["history"][step].tolist()
                    progress.set_postfix(dict(zip(self.loss_names, values, strict=True)))
                if (step + 1) % interval == 0 or step + 1 == self.steps:
                    checkpoints.save(step + 1, args=ocp.args.StandardSave(state))
        return state

    def history(self, state: dict) -> dict[str, list[float]]:
        """Each loss by name, step by step."""
        return dict(zip(self.loss_names, state["history"].T.tolist(), strict=True))

    def predictor(self, state: dict, max_detections: int) -> Callable:
        """Image uint8 (H, W, 3) to boxes (K, 4), scores (K,), labels (K,)."""

        @jax.jit
        def predict(params: nnx.State, image: jax.Array) -> dict[str, jax.Array]:
            outputs = nnx.merge(self.graphdef, params)(image[None])
            boxes, scores = self.head.decode(outputs, jnp.array([image.shape[:2]]))
            if isinstance(outputs, DETROutputs):  # a set: no duplicates
                return best(boxes[0], scores[0], max_detections)
            if outputs.centernesses is not None:
                scores = jnp.sqrt(scores)  # a product of two; the root compares to other heads'
            return select(boxes[0], scores[0], max_detections)

        return functools.partial(predict, state["averaged"])


def train_in_folder(trainer: Trainer, dataset: Dataset, folder: Path, options: dict) -> dict:
    """The state after training, from the folder's last checkpoint on if there is one."""
    state = trainer.initial_state()
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    # Not asynchronous: the next step reuses the memory of the state that would still be written.
    saving = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with ocp.CheckpointManager((folder / "checkpoints").resolve(), options=saving) as checkpoints:
        last = checkpoints.latest_step()
        if last is not None:
            state = checkpoints.restore(last, args=ocp.args.StandardRestore(state))
        return trainer.train(state, dataset, checkpoints)
