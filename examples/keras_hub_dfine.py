"""keras-hub's D-FINE, trained with D-FINE's criterion of this package in its `compute_loss`.

    pip install keras
    pip install --no-deps keras-hub
    pip install regex kagglehub sentencepiece tokenizers
    python examples/keras_hub_dfine.py               # 60 steps of a tiny model on coloured boxes

keras-hub asks for tensorflow-text, which brings TensorFlow; its detectors run without it, so it is
installed without its dependencies. No test runs this script. With keras 3.15.1, keras-hub 0.32.0
and jax 0.10.2 on a CPU 30 steps brought the loss from 25.2 to 18.7.

The detector is keras-hub's own, and all that changes is `compute_loss`, of twenty lines: ground
truth is padded, all matchings of all layers are one call, and FGL learns by the union of them.
"""

import argparse
import os
import time
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax.numpy as jnp
import keras
import numpy as np
from keras_hub.models import DFineBackbone, DFineObjectDetector, HGNetV2Backbone

from visdet_jax.detectors import DFINECriterion, DFINEOutputs

SIDE, CLASSES, MAX_BOXES, QUERIES, LAYERS = 64, 3, 4, 16, 2


class Detector(DFineObjectDetector):
    """keras-hub's detector under `DFINECriterion`.

    Its targets are {"boxes": (B, G, 4), "labels": (B, G)}, x1, y1, x2, y2 in pixels, and a negative
    label for padding.
    """

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **_: Any
    ) -> Any:
        # By layer: the plain head after the first layer comes first.
        logits, boxes, corners, reference = (
            jnp.moveaxis(y_pred[f"{name}"], 1, 0)
            for name in (
                "intermediate_logits",
                "intermediate_reference_points",
                "intermediate_predicted_corners",
                "initial_reference_points",
            )
        )
        decoder = self.backbone.decoder
        outputs = DFINEOutputs(
            logits[1:],
            boxes[1:],
            corners[1:],
            reference[-1],
            decoder.upsampling_factor.value,
            decoder.reg_scale.value,
            logits[0],
            boxes[0],
            y_pred["enc_topk_logits"],
            y_pred["enc_topk_bboxes"],
        )
        criterion = DFINECriterion(num_classes=self.num_classes, reg_max=decoder.max_num_bins)
        shapes = jnp.full((len(y["labels"]), 2), SIDE)
        return sum(criterion.loss(outputs, y["boxes"], y["labels"], shapes).values())


def tiny_detector() -> Detector:
    """A detector of 0.2 million parameters for images of 64 x 64 pixels."""
    image = (SIDE, SIDE, 3)
    levels = {"out_features": ["stage3", "stage4"], "image_shape": image}
    backbone = HGNetV2Backbone(
        stem_channels=[3, 8, 16],
        stackwise_stage_filters=[
            [16, 8, 16, 1, 3, 3],
            [16, 8, 32, 1, 3, 3],
            [32, 16, 64, 1, 3, 5],
            [64, 16, 64, 1, 3, 5],
        ],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False, False, True, True],
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 64],
        embedding_size=16,
        use_learnable_affine_block=True,
        hidden_act="relu",
        **levels,
    )
    return Detector(
        DFineBackbone(
            backbone=backbone,
            decoder_in_channels=[32, 32],
            encoder_hidden_dim=32,
            num_denoising=0,
            num_labels=CLASSES,
            hidden_dim=32,
            learn_initial_query=False,
            num_queries=QUERIES,
            anchor_image_size=(SIDE, SIDE),
            feat_strides=[16, 32],
            num_feature_levels=2,
            encoder_in_channels=[64, 64],
            encode_proj_layers=[1],
            num_attention_heads=4,
            encoder_ffn_dim=64,
            num_encoder_layers=1,
            hidden_expansion=0.34,
            depth_multiplier=0.5,
            eval_idx=-1,
            num_decoder_layers=LAYERS,
            decoder_attention_heads=4,
            decoder_ffn_dim=64,
            decoder_n_points=[4, 4],
            lqe_hidden_dim=16,
            num_lqe_layers=2,
            **levels,
        ),
        num_classes=CLASSES,
        bounding_box_format="yxyx",
    )


def coloured_boxes(seed: int, count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images (B, 64, 64, 3) with up to four boxes, each filled with the colour of its class."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 60, (count, SIDE, SIDE, 3)).astype(np.float32)
    boxes = np.zeros((count, MAX_BOXES, 4), np.float32)
    labels = np.full((count, MAX_BOXES), -1, np.int32)
    for number in range(count):
        for slot in range(rng.integers(1, MAX_BOXES + 1)):
            x, y, width, height = rng.integers((0, 0, 12, 12), (40, 40, 24, 24))
            label = rng.integers(CLASSES)
            images[number, y : y + height, x : x + width] = 255 * np.eye(3)[label]
            boxes[number, slot], labels[number, slot] = (x, y, x + width, y + height), label
    return images, {"boxes": boxes, "labels": labels}


def main(argv: list[str] | None = None) -> list[float]:
    """Trains, prints the loss before and after, and gives the loss of each step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args(argv)
    keras.utils.set_random_seed(0)
    detector = tiny_detector()
    detector.compile(optimizer=keras.optimizers.AdamW(1e-3))
    losses = []
    for step in range(options.steps):
        if step == 1:
            start = time.perf_counter()
        # Keras's own method: keras-hub's makes an array of the targets, which are a dict.
        logs = keras.Model.train_on_batch(detector, *coloured_boxes(step, 8), return_dict=True)
        losses.append(float(logs["loss"]))
    seconds = (time.perf_counter() - start) / (options.steps - 1)
    first, last = np.mean(losses[:5]), np.mean(losses[-5:])
    print(f"loss of the first and the last five steps: {first:.2f} -> {last:.2f}")
    print(f"{1000 * seconds:.0f} ms a step, after one that compiles")
    return losses


if __name__ == "__main__":
    main()
