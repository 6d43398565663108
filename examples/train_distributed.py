"""The training of train_detector.py over any number of devices and hosts.

    python examples/train_distributed.py --data digits                 # all devices of this machine
    python examples/train_distributed.py --data digits --processes 2   # to try it: on the CPU

On several hosts the same command is started on each of them, with a folder that all of them see:
    srun python examples/train_distributed.py --multihost --out DIR    # SLURM; likewise a TPU slice
    python examples/train_distributed.py --coordinator HOST:PORT --num-processes N --process-id I \\
        --out DIR                                                      # where JAX can not find out

All other options are those of train_detector.py. The devices share the batch, so their number must
divide --batch-size; the state is on each of them. The step is the very function of one device:
under jit over sharded arrays its sums and counts are the whole batch's. A run goes on (--resume
DIR) on any number of devices. Its folder gets config.json, checkpoints and metrics.json.
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
from detector.heads import make_head
from detector.training import Trainer, train_in_folder
from train_detector import build_dataset, write_metrics


class Shards:
    """A dataset's batches as arrays over the devices of a mesh; each process makes its own rows."""

    def __init__(self, dataset: Dataset, batch_size: int, mesh: Mesh):
        self.dataset, self.sharding = dataset, NamedSharding(mesh, P("data"))
        share = batch_size // jax.process_count()
        self.rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)

    def train_batch(self, step: int) -> dict[str, jax.Array]:
        """The batch of one step."""
        rows = self.dataset.train_batch(step, rows=self.rows)
        return {
            name: jax.make_array_from_process_local_data(self.sharding, x)
            for name, x in rows.items()
        }


def train(options: dict[str, Any], out: Path) -> dict:
    """Train, or continue, the run in folder `out` on all devices; its metrics."""
    # a process's devices side by side, so that its rows are
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    mesh = Mesh(np.array(devices), ("data",))
    if options["batch_size"] % mesh.size:
        raise ConfigError(
            f"--batch-size {options['batch_size']} is not a multiple of the {mesh.size} devices"
        )
    dataset = build_dataset(options)
    head = make_head(options["model"], len(dataset.class_names), options["strides"])
    trainer = Trainer(head, options["steps"], options["seed"], NamedSharding(mesh, P()))
    state = train_in_folder(trainer, Shards(dataset, options["batch_size"], mesh), out, options)
    metrics = {
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
    """Run this file in `count` processes of this machine; the status of the first that fails."""
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
        for process in running:  # they wait for the one that failed
            process.kill()
            process.wait()


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Where to run, and the options of train_detector.py."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--processes", type=int, metavar="N", help="N processes on this machine's CPU, to try it")
    add("--cpu-devices", type=int, metavar="N", help="virtual CPU devices (default: 2 a process)")
    add("--multihost", action="store_true", help="on several hosts, which JAX finds itself")
    add("--coordinator", metavar="HOST:PORT", help="of process 0; with it the next two")
    add("--num-processes", type=int, metavar="N")
    add("--process-id", type=int, metavar="I")
    own, others = parser.parse_known_args(argv)
    by_hand = [own.coordinator, own.num_processes, own.process_id]
    if any(v is not None for v in by_hand) and (None in by_hand or own.multihost):
        parser.error("--coordinator, --num-processes and --process-id: all three, or --multihost")
    if own.processes is not None and (own.multihost or own.coordinator):
        parser.error("--processes starts processes of this machine: no --multihost, --coordinator")
    for name in ("processes", "cpu_devices"):
        if (number := getattr(own, name)) is not None and number < 1:
            parser.error(f"--{name.replace('_', '-')}: {number} is not above 0")
    return own, others


def main(argv: list[str] | None = None) -> dict | None:
    """Run the command line; what metrics.json holds, but from --processes."""
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
            # Returns when all processes are here, so each has read its options before one writes.
            jax.distributed.initialize(own.coordinator, own.num_processes, own.process_id)
        return train(options, out)
    except (ConfigError, DataError) as error:
        sys.exit(f"train_distributed.py: error: {error}")


if __name__ == "__main__":
    main()
