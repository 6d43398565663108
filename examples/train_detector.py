"""Train a small FCOS detector whose losses are built from config dicts.

    python examples/train_detector.py                    # tree crowns in aerial photographs
    python examples/train_detector.py --data digits      # handwritten digits
    python examples/train_detector.py --losses my.yaml   # other losses: see LOSSES below
    python examples/train_detector.py --resume           # continue the last run

A run's folder (runs/<data> by default) gets config.json, checkpoints, metrics.json, losses.png and
detections.jpg.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tqdm import tqdm

from detector.coco import Coco
from detector.config import LOSS_NAMES, ConfigError, read_options
from detector.data import DataError, Dataset
from detector.digits import Digits
from detector.evaluation import average_precision, detect, format_table
from detector.fcos import assign_targets, decode, fcos_losses, make_points
from detector.network import Detector
from detector.pictures import draw_detections, draw_losses
from detector.trees import Trees
from visdet_jax import build_loss

# What a --losses file replaces. YAML:
#     loss_cls: {type: FocalLoss, gamma: 2.0, alpha: 0.25}
#     loss_bbox: {type: IoULoss, mode: linear}
#     loss_centerness: {type: CrossEntropyLoss, use_sigmoid: true}
# or Python: the three names below, each a dict.
LOSSES = {
    "loss_cls": {"type": "FocalLoss", "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
    "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
}
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-3
EMA_DECAY = 0.98


def build_losses(configs: dict[str, dict]) -> dict[str, Callable]:
    """Config dicts by name as losses by name."""
    losses = {}
    for name, config in configs.items():
        try:
            losses[name] = build_loss(config)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name} = {config}: {error}") from error
    return losses


def build_dataset(options: dict[str, Any]) -> Dataset:
    """The data source that the options name."""
    common = {name: options[name] for name in ("batch_size", "image_size", "max_boxes", "seed")}
    if options["data"] == "trees":
        return Trees(**common, multiple=max(options["strides"]))
    if options["data"] == "digits":
        return Digits(**common)
    paths = ("train_images", "train_json", "val_images", "val_json")
    return Coco(**common, **{name: Path(options[name]) for name in paths})


def build_optimizer(steps: int) -> optax.GradientTransformation:
    """AdamW on a cosine schedule with a short warm-up."""
    warmup = max(1, steps // 20)
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, warmup, max(steps, 2))
    return optax.chain(
        optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    )


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    ema: optax.GradientTransformation,
    losses: dict[str, Callable],
) -> Callable[[dict, dict], dict]:
    """The jitted step: state and batch to the next state; one shape in, so one compilation."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: dict, batch: dict[str, jax.Array]) -> dict:
        def total_loss(params: nnx.State) -> tuple[jax.Array, jax.Array]:
            model = nnx.merge(graphdef, params)
            outputs = model(batch["images"])
            points, point_strides = make_points(batch["images"].shape[1:3], model.strides)
            targets = jax.vmap(assign_targets, in_axes=(None, None, 0, 0, None))(
                points, point_strides, batch["boxes"], batch["labels"], model.num_classes
            )
            values = fcos_losses(outputs, points, targets, losses)
            return sum(values.values()), jnp.stack([values[name] for name in LOSS_NAMES])

        gradients, values = jax.grad(total_loss, has_aux=True)(state["params"])
        updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        averaged, ema_state = ema.update(params, state["ema_state"])
        return {
            "step": state["step"] + 1,
            "params": params,
            "opt_state": opt_state,
            "ema_state": ema_state,
            "averaged": averaged,  # the weights that are evaluated
            "history": state["history"].at[state["step"]].set(values),
        }

    return train_step


def make_predict(graphdef: nnx.GraphDef, params: nnx.State, max_detections: int) -> Callable:
    """Image uint8 (H, W, 3) to boxes (K, 4), scores (K,), labels (K,); compiled once per shape."""

    @jax.jit
    def predict(params: nnx.State, image: jax.Array) -> dict[str, jax.Array]:
        model = nnx.merge(graphdef, params)
        points, _ = make_points(image.shape[:2], model.strides)
        outputs = {name: value[0] for name, value in model(image[None]).items()}
        return decode(outputs, points, image.shape[:2], max_detections)

    return functools.partial(predict, params)


def train(
    state: dict,
    train_step: Callable[[dict, dict], dict],
    dataset: Dataset,
    checkpoints: ocp.CheckpointManager,
    steps: int,
) -> dict:
    """The state after `steps` steps, saved ten times on the way."""
    first = int(state["step"])
    with tqdm(total=steps, initial=first, unit="step") as progress:
        for step in range(first, steps):
            state = train_step(state, dataset.train_batch(step))
            progress.update()
            if (step + 1) % 10 == 0:  # reading the losses waits for the step: not every time
                values = state["history"][step].tolist()
                progress.set_postfix(dict(zip(LOSS_NAMES, values, strict=True)))
            if (step + 1) % max(1, steps // 10) == 0 or step + 1 == steps:
                checkpoints.save(step + 1, args=ocp.args.StandardSave(state))
    return state


def run(options: dict[str, Any], out: Path) -> dict:
    """Train, or continue, the run in folder `out`; evaluate it and write metrics and pictures."""
    started = time.perf_counter()
    losses = build_losses(options["losses"])
    dataset = build_dataset(options)
    steps = options["steps"]

    optimizer, ema = build_optimizer(steps), optax.ema(EMA_DECAY)

    def make_model() -> Detector:
        # with the default generator, threefry, the initialisers take 2 s longer to compile
        rngs = nnx.Rngs(jax.random.key(options["seed"], impl="rbg"))
        return Detector(len(dataset.class_names), tuple(options["strides"]), rngs=rngs)

    @jax.jit  # op by op, this is 190 small compilations
    def initial_state() -> dict:
        params = nnx.state(make_model())
        return {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "opt_state": optimizer.init(params),
            "ema_state": ema.init(params),
            "averaged": params,
            "history": jnp.zeros((steps, len(LOSS_NAMES))),
        }

    graphdef = nnx.graphdef(nnx.eval_shape(make_model))
    state = initial_state()

    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    # Not asynchronous: the next step reuses the memory of the state that would still be written.
    saving = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with ocp.CheckpointManager((out / "checkpoints").resolve(), options=saving) as checkpoints:
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(
                checkpoints.latest_step(), args=ocp.args.StandardRestore(state)
            )
        train_step = make_train_step(graphdef, optimizer, ema, losses)
        state = train(state, train_step, dataset, checkpoints, steps)
    trained = time.perf_counter()

    table, found = {}, []
    for validation in dataset.validation:
        predict = make_predict(graphdef, state["averaged"], validation.max_detections)
        results = detect(predict, validation)
        found.append((validation, results))
        table[validation.name] = {
            "images": len(validation.ground_truth["images"]),
            "boxes": sum(not a["iscrowd"] for a in validation.ground_truth["annotations"]),
            **average_precision(validation, results),
        }
    history = dict(zip(LOSS_NAMES, state["history"].T.tolist(), strict=True))
    draw_losses(out / "losses.png", history)
    draw_detections(out / "detections.jpg", found)
    metrics = {
        "validation": table,
        "parameters": sum(p.size for p in jax.tree.leaves(state["params"])),
        "train_step_compilations": train_step._cache_size(),
        "seconds": {
            "training": round(trained - started, 1),
            "evaluation": round(time.perf_counter() - trained, 1),
        },
        "options": options,
        "train_losses": history,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(f"\n{format_table(table)}\n\n{out}: metrics.json, losses.png, detections.jpg")
    return metrics


def main(argv: list[str] | None = None) -> dict:
    """Run the command line and return what metrics.json holds."""
    try:
        options, out = read_options(argv, LOSSES)
        return run(options, out)
    except (ConfigError, DataError) as error:
        sys.exit(f"train_detector.py: error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted; --resume DIR continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
