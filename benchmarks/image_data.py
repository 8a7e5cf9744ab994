"""Cost of images: `python -m benchmarks.image_data`, with METATRAIN_DATA_DIR.

Every dataset is loaded in new processes: the first with an empty cache and the shards
out of the system's memory, the others with what the first left. Then batches are drawn
and gathered in-graph, many in one loop that keeps each batch, beside a loop of Adam
steps of an MLP with two hidden layers of 128 on one batch that stays. Cases take turns
and the quickest loop counts, so that other work on the machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATASETS = ("mnist", "cifar10_subset")
WARM_RUNS = 3
BATCH = 128
STEPS = 200
REPEATS = 30


def load(name: str) -> dict[str, Any]:
    """Loads one dataset in this process."""
    begin = time.perf_counter()
    import jax
    import jax.numpy as jnp

    from tasks.data.tfds_images import TFDSImages

    jax.block_until_ready(jnp.zeros(1))  # the device is there
    imported = time.perf_counter()
    dataset = jax.block_until_ready(TFDSImages(name).load())
    end = time.perf_counter()
    return {
        "seconds": round(end - imported, 3),
        "import_seconds": round(imported - begin, 3),
        "images": sum(len(split.labels) for split in dataset[:4]),
    }


def forget_files(name: str) -> None:
    """Drops the shards from the page cache, so that they are read from disk."""
    from tasks.data import prepared

    for files in prepared.open_dataset(name).shards.values():
        for path in files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_loads(name: str) -> list[dict[str, Any]]:
    """Loads one dataset in new processes that share a new cache."""
    forget_files(name)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(1 + WARM_RUNS):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.image_data", "--only", name],
                env=os.environ | {"METATRAIN_CACHE_DIR": folder},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            row = json.loads(done.stdout.splitlines()[-1])
            what = f"load {name}, {'warm' if run else 'cold'}"
            rows.append({"what": what, **row})
    return rows


def sampling(name: str, crop_padding: int, flip: bool) -> Callable[[int], Any]:
    """Builds a loop over `STEPS` batches of images, a function of a seed."""
    import jax
    import jax.numpy as jnp

    from tasks.data import images
    from tasks.data.augmentation import Augmentation
    from tasks.data.tfds_images import TFDSImages

    augmentation = Augmentation(crop_padding, flip)
    dataset = TFDSImages(name).load()
    size = dataset.train.images[0].size

    @jax.jit
    def run(dataset: images.ImageDataset, key: jax.Array) -> Any:
        for_rows, for_changes = jax.random.split(key)
        rows = images.draw_indices(dataset, for_rows, "train", STEPS, BATCH)
        changes = augmentation.draw(for_changes, STEPS, BATCH)

        def body(carry: Any, draw: Any) -> tuple[Any, None]:
            # The last batch is all that is kept, but each is written: it is the carry.
            rows, changes = draw
            batch, labels = images.gather(dataset, rows, "train")
            if augmentation.active:
                batch = augmentation.apply(batch, changes)
            return (batch.reshape(BATCH, size), labels), None

        begin = jnp.zeros((BATCH, size)), jnp.zeros(BATCH, jnp.int32)
        return jax.lax.scan(body, begin, (rows, changes))[0]

    return lambda seed: run(dataset, jax.random.key(seed))


def training(name: str, *, sampled: bool) -> Callable[[int], Any]:
    """Builds a loop over `STEPS` Adam steps, on one batch or on sampled ones."""
    import jax
    import optax

    from tasks import MLP, ImageClassification
    from tasks.base import sample
    from tasks.data.tfds_images import TFDSImages

    task = ImageClassification(MLP((128, 128)), TFDSImages(name), BATCH)
    dataset, adam = task.load_data(), optax.adam(1e-3)
    fixed = sample(task, dataset, jax.random.key(1))

    @jax.jit
    def run(dataset: Any, fixed: Any, key: jax.Array) -> Any:
        params = task.init(jax.random.key(0))
        draws = task.draw(dataset, key, "train", STEPS)

        def body(carry: Any, draw: Any) -> tuple[Any, None]:
            params, state = carry
            batch = task.batch(dataset, draw, "train") if sampled else fixed
            grads = jax.grad(lambda p: task.loss(p, key, batch)[0])(params)
            updates, state = adam.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, adam.init(params)), draws)[0]

    return lambda seed: run(dataset, fixed, jax.random.key(seed))


def measure_steps(name: str) -> list[dict[str, Any]]:
    """Returns microseconds per sampled batch and per training step."""
    import jax

    step = f"step of Adam, MLP [128, 128], {name}"
    cases = {
        step: training(name, sampled=False),
        f"{step}, sampled": training(name, sampled=True),
        f"sampling, {name}": sampling(name, 0, flip=False),
        f"sampling, {name}, flip": sampling(name, 0, flip=True),
        f"sampling, {name}, crop 4 and flip": sampling(name, 4, flip=True),
    }
    times: dict[str, list[float]] = {what: [] for what in cases}
    for seed in range(REPEATS + 1):
        for what, run in cases.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(seed))
            times[what].append(1e6 * (time.perf_counter() - begin) / STEPS)
    best = {what: min(values[1:]) for what, values in times.items()}
    return [
        {
            "what": what,
            "microseconds": round(value, 1),
            "percent_of_step": round(100 * value / best[step], 1),
        }
        for what, value in best.items()
    ]


def describe(row: dict[str, Any]) -> str:
    """Returns one line of the table."""
    if "seconds" in row:
        return (
            f"{row['what']:<52} {row['seconds']:>8.2f} s   "
            f"{row['images']:,} images; imports {row['import_seconds']:.1f} s"
        )
    return (
        f"{row['what']:<52} {row['microseconds']:>8.1f} µs  "
        f"{row['percent_of_step']:>6.1f} % of a step"
    )


def main() -> None:
    """Measures everything, prints a table and JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="a dataset, to load it in this process")
    parser.add_argument("--out", type=Path, help="file of JSON lines to append to")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(load(arguments.only)))
        return
    rows = [row for name in DATASETS for row in measure_loads(name)]
    rows += [row for name in DATASETS for row in measure_steps(name)]
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print("\n".join(map(describe, rows)), flush=True)
    lines = "".join(json.dumps(row | machine) + "\n" for row in rows)
    print(lines, end="")
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(lines)


if __name__ == "__main__":
    main()
