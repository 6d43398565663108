"""Losses by name: the registry, losses from configs of several kinds, and messages of errors.

python examples/lookup.py
"""

import numpy as np
import yaml
from ml_collections import ConfigDict

from visdet_jax import LOSSES, build_loss, configs

YAML = """
loss_cls: {type: QualityFocalLoss, beta: 2.0}
loss_bbox: {type: mmdet.GIoULoss, eps: 1e-6, loss_weight: 2.0}
"""

MISTAKES = [
    {"type": "FocaLoss"},
    {"type": "FocalLoss", "gama": 2.0},
    {"type": "FocalLoss", "gamma": "two"},
    {"type": "IoULoss", "mode": "cubic"},
    {"gamma": 2.0},
]


def main() -> None:
    """Print the registry, some losses and some errors."""
    print(f"{len(LOSSES)} registered:", ", ".join(sorted(LOSSES)))

    print("\nfrom a dict")
    loss = build_loss({"type": "FocalLoss", "gamma": 1.5})
    print(f"  {loss!r}")
    logits, labels = np.zeros((4, 3), np.float32), np.array([0, 1, 2, 3])
    print(f"  its value for logits of 0: {loss(logits, labels):.5f}")

    print("\nfrom YAML")
    for name, config in yaml.safe_load(YAML).items():
        print(f"  {name}: {build_loss(config)!r}")

    print("\nfrom an ml_collections ConfigDict")
    config = ConfigDict({"type": "SmoothL1Loss", "beta": 0.11})
    print(f"  {build_loss(config)!r}")

    print("\nthe losses of a detector")
    for name, config in configs.GFL.items():
        print(f"  {name}: {build_loss(config)!r}")

    print("\nmistakes and their errors")
    for config in MISTAKES:
        try:
            build_loss(config)
        except (TypeError, ValueError) as error:
            print(f"  {config}\n    {type(error).__name__}: {error}")
    try:
        loss(logits, labels[:3])
    except ValueError as error:
        print(f"  labels of another length\n    {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
