"""The small examples run, and print and return the right values."""

import jax
import numpy as np
import pytest

import benchmark
import draw_overview
import head_cost
import lookup
import matching
import mmdet_configs
import two_stage_cost
import vmap_losses
from cases import as_long
from visdet_jax import FocalLoss, GIoULoss

pytestmark = pytest.mark.example


def test_losses_per_image():
    logits, labels, pred, target, real = vmap_losses.make_batch()
    assert np.isnan(pred[0]).all()  # The first image has only padding.
    losses = vmap_losses.losses_per_image(logits, labels, pred, target, real)
    for i in range(len(real)):
        boxes = max(int(real[i].sum()), 1)
        expected = FocalLoss()(logits[i], labels[i], avg_factor=boxes)
        np.testing.assert_allclose(losses["loss_cls"][i], expected, rtol=1e-5)
        kept = real[i] > 0
        boxes_loss = GIoULoss(loss_weight=2.0)(pred[i][kept], target[i][kept], avg_factor=boxes)
        np.testing.assert_allclose(losses["loss_bbox"][i], boxes_loss, rtol=1e-5)


def test_sweep():
    logits, labels, *_ = vmap_losses.make_batch()
    gammas, alphas = np.array([0.0, 2.0]), np.array([0.25, 0.5, 0.75])
    table = vmap_losses.sweep(logits, labels, jax.numpy.array(gammas), jax.numpy.array(alphas))
    for i, gamma in enumerate(gammas):
        for j, alpha in enumerate(alphas):
            expected = FocalLoss(gamma=float(gamma), alpha=float(alpha))(logits, labels)
            np.testing.assert_allclose(table[i, j], expected, rtol=1e-5)


def test_main_of_vmap_losses(capsys):
    vmap_losses.main()
    assert "focal loss by gamma" in capsys.readouterr().out


def test_lookup(capsys):
    lookup.main()
    out = capsys.readouterr().out
    for text in (
        "GIoULoss(reduction='mean', loss_weight=2.0, inner_ratio=None, focaler=None, eps=1e-06)",
        "SmoothL1Loss(reduction='mean', loss_weight=1.0, beta=0.11)",
        "Did you mean 'FocalLoss'?",
        "Did you mean 'gamma'?",
        "sigmoid_focal_loss: target must have shape (4,), got (3,)",
    ):
        assert text in out


@pytest.mark.long
def test_mmdet_configs(capsys):
    histories = mmdet_configs.main()
    out = capsys.readouterr().out
    third = {"retinanet": [], "atss": ["loss_centerness"], "gfl": ["loss_dfl"]}
    for detector, names in third.items():
        history = histories[detector]
        assert sorted(history[0]) == sorted(["loss_cls", "loss_bbox", *names])
        for name in history[0]:
            assert f"{name:<15} {history[0][name]:.3f} -> {history[-1][name]:.3f}" in out
            if (detector, name) != ("gfl", "loss_cls"):  # Its targets rise with the IoU.
                assert history[-1][name] < history[0][name], (detector, name)
        assert sum(history[-1].values()) < sum(history[0].values())


def test_head_cost(capsys):
    """One row of the table. The whole script runs each head in its own process."""
    (row,) = head_cost.main(["--head", "FCOS", "--quick", "--batch", "1"]).values()
    assert set(row) == set(head_cost.COLUMNS)
    assert row["priors"] == 238
    assert all(value > 0 for value in row.values())
    assert "238" in head_cost.format_table({"FCOS": row})


@pytest.mark.long
@pytest.mark.parametrize(
    "step", [*map(as_long, two_stage_cost.STEPS[:3]), *two_stage_cost.STEPS[3:4]]
)
def test_two_stage_cost(step, capsys):
    (row,) = two_stage_cost.main(
        ["--step", step, "--quick", "--batch", "1", "--boxes", "3", "--repeats", "1"]
    ).values()
    assert set(row) == set(two_stage_cost.COLUMNS)
    assert step in two_stage_cost.format_table({step: row})


@pytest.mark.long
def test_matching(capsys):
    """The total costs equal scipy's. Otherwise the times would not be comparable."""
    rows = matching.main(["--quick"])
    assert tuple(rows) == matching.NETWORKS
    for row in rows.values():
        assert set(matching.COLUMNS) <= set(row)
        assert all(row[column] > 0 for column in matching.COLUMNS if column != "temp MiB")
        assert abs(row["excess"]) < 1e-6
    out = capsys.readouterr().out
    assert f"30 queries, 5 boxes, 2 images, 1 layers, jax {jax.__version__}" in out


def test_benchmark(capsys):
    """The contenders agree, and the tables name the versions and the columns."""
    rows = benchmark.main(["--quick", "--no-torch", "--only", "focal"])
    assert [row.name for row in rows] == ["focal", "quality focal", "varifocal", "softmax focal"]
    for row in rows:
        assert {"ours", "jnp"} <= set(row.times["value"])
        assert all(time > 0 for times in row.times.values() for time in times.values())
        assert row.temp < 1.1
        assert row.errors["ours"]["value"] < 10
    out = capsys.readouterr().out
    assert f"jax {jax.__version__}" in out
    assert "geometric mean" in out


def test_benchmark_of_an_unknown_loss(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--only", "fcal"])
    assert "no loss has 'fcal' in its name: focal, quality focal" in capsys.readouterr().err


def test_benchmark_by_rows(capsys):
    assert benchmark.main(["--quick", "--scaling", "--only", "L1"]) == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["L1", "smooth L1", "balanced L1"]


@pytest.mark.long
def test_the_picture_of_the_front_page(tmp_path):
    losses = draw_overview.draw(tmp_path / "overview.jpg")
    assert losses.keys() == {"loss_bbox", "loss_centerness", "loss_cls"}
    assert all(0.1 < value < 2 for value in losses.values())
    assert 50_000 < (tmp_path / "overview.jpg").stat().st_size < 300_000
