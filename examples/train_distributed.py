"""The training of train_detector.py on any number of devices and hosts.

    python examples/train_distributed.py --data digits                 # all devices of this machine
    python examples/train_distributed.py --data digits --processes 2   # to try it on the CPU

On several hosts start the same command on each of them, with a folder that all of them see:
    srun python examples/train_distributed.py --multihost --out DIR    # SLURM; likewise a TPU slice
    python examples/train_distributed.py --coordinator HOST:PORT --num-processes N --process-id I \\
        --out DIR                                      # where JAX cannot find the hosts by itself

All other options are those of train_detector.py. The batch is split over the devices, so their
number must divide --batch-size; every device holds the whole state. The step is the same function
as on one device: under jit over sharded arrays, its sums and counts are those of the whole batch.
A run continues (--resume DIR) on any number of devices. Its folder gets config.json, checkpoints
and metrics.json.
"""

import argparse
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from detector.config import ConfigError, read_options
from detector.data import DataError, Dataset
from detector.heads import make_heads
from detector.training import Trainer, train_in_folder
from train_detector import Metrics, build_dataset, write_metrics


class Shards:
    """The batches of a dataset, sharded over a mesh. Each process makes only its own rows."""

    def __init__(self, dataset: Dataset, batch_size: int, mesh: Mesh) -> None:
        self.dataset, self.sharding = dataset, NamedSharding(mesh, P("data"))
        count, index = batch_size // jax.process_count(), jax.process_index()
        self.rows = slice(index * count, (index + 1) * count)

    def train_batch(self, step: int) -> dict[str, jax.Array]:
        """The batch of a step."""
        own_rows = self.dataset.train_batch(step, rows=self.rows)
        return {
            name: jax.make_array_from_process_local_data(self.sharding, rows)
            for name, rows in own_rows.items()
        }


def train(options: dict[str, Any], out: Path) -> Metrics:
    """Train, or continue, the run in folder `out` on all devices; returns its metrics."""
    # Keep the devices of a process next to each other: `Shards` takes its rows to be so.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    mesh = Mesh(np.array(devices), ("data",))
    if options["batch_size"] % mesh.size:
        raise ConfigError(
            f"--batch-size {options['batch_size']} is not a multiple of the {mesh.size} devices"
        )
    dataset = build_dataset(options)
    heads = make_heads(options["model"], len(dataset.class_names), options["strides"])
    trainer = Trainer(heads, options["steps"], options["seed"], NamedSharding(mesh, P()))
    state = train_in_folder(trainer, Shards(dataset, options["batch_size"], mesh), out, options)
    metrics: Metrics = {
        "devices": mesh.size,
        "processes": jax.process_count(),
        "options": options,
        "train_losses": trainer.history(state),
    }
    if jax.process_index() == 0:
        write_metrics(out, metrics)
        print(f"{mesh.size} devices in {jax.process_count()} processes; {out}: metrics.json")
    return metrics


def start_processes(count: int, arguments: list[str]) -> int:
    """Run this file in `count` processes of this machine.

    Returns: the exit status of the first process that fails, or 0. The others are then killed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, __file__, *arguments]
    command += ["--coordinator", coordinator, "--num-processes", str(count)]
    running = [subprocess.Popen([*command, "--process-id", str(i)]) for i in range(count)]
    try:
        while running:
            for process in running:
                try:
                    status = process.wait(timeout=0.1)
                except subprocess.TimeoutExpired:
                    continue
                if status:
                    return status
                running.remove(process)
                break
        return 0
    finally:
        for process in running:  # These would wait forever for the one that failed.
            process.kill()
            process.wait()


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this file, and the rest, which are those of train_detector.py."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--processes", type=int, metavar="N", help="start N processes on this machine's CPU")
    add("--cpu-devices", type=int, metavar="N", help="virtual CPU devices (default: 2 a process)")
    add("--multihost", action="store_true", help="run on several hosts, which JAX finds by itself")
    add("--coordinator", metavar="HOST:PORT", help="address of process 0; needs the next two")
    add("--num-processes", type=int, metavar="N", help="number of processes on all hosts")
    add("--process-id", type=int, metavar="I", help="number of this process, 0 to N - 1")
    own, others = parser.parse_known_args(argv)
    explicit = [own.coordinator, own.num_processes, own.process_id]
    if any(v is not None for v in explicit) and (None in explicit or own.multihost):
        parser.error("--coordinator, --num-processes and --process-id: all three, or --multihost")
    if own.processes is not None and (own.multihost or own.coordinator):
        parser.error("--processes starts processes of this machine: no --multihost, --coordinator")
    for name in ("processes", "cpu_devices"):
        if (number := getattr(own, name)) is not None and number < 1:
            parser.error(f"--{name.replace('_', '-')}: {number} is not above 0")
    return own, others


def main(argv: list[str] | None = None) -> Metrics | None:
    """Run the command line and return the content of metrics.json; None with --processes."""
    own, others = parse_arguments(argv)
    try:
        runs, out = read_options(others)
        if len(runs) > 1:
            raise ConfigError("--all is for train_detector.py: name one --detector")
        ((_, options),) = runs.items()
        if own.processes is not None:
            devices = ["--cpu-devices", str(own.cpu_devices or 2)]
            if status := start_processes(own.processes, [*others, "--out", str(out), *devices]):
                sys.exit(status)
            return None
        if own.cpu_devices:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", own.cpu_devices)
        if own.multihost or own.coordinator:
            # Returns when all processes have called it. So each has read its options before one
            # of them writes to the folder.
            jax.distributed.initialize(own.coordinator, own.num_processes, own.process_id)
        return train(options, out)
    except (ConfigError, DataError) as error:
        sys.exit(f"train_distributed.py: error: {error}")


if __name__ == "__main__":
    main()
