"""Training on several devices and processes gives the numbers of one device."""

import json
import signal

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import train_distributed
from detector import digits
from detector.config import read_options
from detector.heads import make_heads
from detector.training import Trainer, train_in_folder
from train_detector import build_dataset

pytestmark = pytest.mark.example

RUN = ["--data", "digits", "--steps", "3", "--batch-size", "8"]


@pytest.fixture(autouse=True)
def five_minutes():
    """A limit of time for each test, since processes could wait for each other forever."""

    def stop(*_):
        raise TimeoutError("the processes did not end within five minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def in_processes(capfd, *arguments):
    """Run in two processes of two devices each."""
    train_distributed.main(["--processes", "2", *arguments])
    assert "4 devices in 2 processes" in capfd.readouterr().out


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """The state after training in one process on one device, as train_detector.py does."""
    folder = tmp_path_factory.mktemp("one") / "run"
    ((_, options),) = read_options([*RUN, "--out", str(folder)])[0].items()
    dataset = build_dataset(options)
    heads = make_heads(options["model"], len(dataset.class_names), options["strides"])
    return train_in_folder(
        Trainer(heads, options["steps"], options["seed"]), dataset, folder, options
    )


@pytest.mark.long
def test_a_run_continues_on_other_devices_and_processes(one_device, tmp_path, monkeypatch, capfd):
    """A step on 8 devices of this process and two on two processes of 2 devices equal 3 on one."""
    folder, train_batch = tmp_path / "run", digits.Digits.train_batch

    def interrupted(self, step, rows):
        if step == 1:
            raise KeyboardInterrupt
        return train_batch(self, step, rows)

    with monkeypatch.context() as patch:
        patch.setattr(digits.Digits, "train_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_distributed.main([*RUN, "--out", str(folder)])
    in_processes(capfd, "--resume", str(folder))
    with ocp.CheckpointManager((folder / "checkpoints").resolve()) as checkpoints:
        assert checkpoints.latest_step() == one_device["step"] == 3
        state = checkpoints.restore(3, args=ocp.args.StandardRestore(one_device))
    chex.assert_trees_all_close(state["history"], one_device["history"], rtol=1e-4)
    # A step of Adam is 2e-3 for every parameter, whatever the size of its gradient. Where that is
    # nearly 0, or where rounding decides on which side of a kink one prior's loss lies, parameters
    # differ by part of a step. With other images, or another divisor, all would, by whole steps.
    resumed, expected = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(run["params"])])
        for run in (state, one_device)
    )
    distance = np.abs(resumed - expected)
    assert (distance > 2e-5 + 1e-4 * np.abs(expected)).mean() < 0.01
    assert distance.max() < 2e-3
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["devices"], metrics["processes"]) == (4, 2)
    assert len(metrics["train_losses"]["loss_bbox"]) == 3


def test_rows_of_a_batch_do_not_depend_on_the_other_rows():
    dataset = digits.Digits(batch_size=8, image_size=96, max_boxes=6, seed=0)
    whole = dataset.train_batch(3)
    halves = [dataset.train_batch(3, rows=slice(i, i + 4)) for i in (0, 4)]
    chex.assert_trees_all_equal(jax.tree.map(lambda *rows: np.concatenate(rows), *halves), whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "6"], "--batch-size 6 is not a multiple of the 8 devices"),
        (["--all"], "--all is for train_detector.py: name one --detector"),
        (["--processes", "0"], "--processes: 0 is not above 0"),
        (["--cpu-devices", "0"], "--cpu-devices: 0 is not above 0"),
        (["--coordinator", "here:1"], "all three, or --multihost"),
        (["--process-id", "1", "--multihost"], "all three, or --multihost"),
        (["--processes", "2", "--multihost"], "no --multihost, --coordinator"),
    ],
)
def test_errors(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_distributed.main(["--data", "digits", "--out", str(tmp_path / "run"), *arguments])
    assert stopped.value.code not in (0, None)
    assert message in f"{stopped.value.code} {capsys.readouterr().err}"
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_process_that_fails_stops_the_others(tmp_path, capfd):
    arguments = ["--data", "digits", "--batch-size", "6", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        in_processes(capfd, *arguments)
    assert stopped.value.code == 1
    assert "--batch-size 6 is not a multiple of the 4 devices" in capfd.readouterr().err
