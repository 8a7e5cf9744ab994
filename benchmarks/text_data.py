"""Cost of text: `python -m benchmarks.text_data`, with METATRAIN_DATA_DIR if there.

Every source and tokenizer is loaded in two new processes, the first with an empty cache
and the second with what the first left; imports are not counted. Then a batch is drawn
and gathered in-graph many times in one loop, beside one step of Adam of a small MLP,
so that it shows what sampling adds to an inner step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCES = ("python", "tiny_shakespeare", "wikitext2_small")
TOKENIZERS = ("bytes", "pairs 1024", "pairs 8192")
STEPS = 500
REPEATS = 7


def build(source: str, tokenizer: str) -> Any:
    """Returns the source of text by name; imports stay out of the parent process."""
    from tasks.data.standard_library import StandardLibrary
    from tasks.data.tfds_text import TFDSText
    from tasks.data.tokenizers import BytePairs, Bytes

    name, _, size = tokenizer.partition(" ")
    made = Bytes() if name == "bytes" else BytePairs(int(size))
    if source == "python":
        return StandardLibrary(made)
    return TFDSText(source, made)


def load(source: str, tokenizer: str) -> dict[str, Any]:
    """Loads one dataset in this process."""
    import jax
    import jax.numpy as jnp

    from tasks.base import SPLITS

    jax.block_until_ready(jnp.zeros(1))  # the device is there
    text = build(source, tokenizer)
    begin = time.perf_counter()
    dataset = jax.block_until_ready(text.load())
    seconds = time.perf_counter() - begin
    tokens = {split: len(dataset.split(split)) for split in SPLITS}
    return {"seconds": round(seconds, 3), "tokens": tokens}


def measure_loads(source: str, tokenizer: str) -> dict[str, Any]:
    """Loads one dataset in two new processes that share a new cache."""
    command = [sys.executable, "-m", "benchmarks.text_data"]
    command += ["--only", f"{source}:{tokenizer}"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"METATRAIN_CACHE_DIR": folder}
        for _ in range(2):
            done = subprocess.run(
                command, capture_output=True, text=True, env=env, check=False
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    cold, warm = rows
    return {
        "source": source,
        "tokenizer": tokenizer,
        "cold_seconds": cold["seconds"],
        "warm_seconds": warm["seconds"],
        "tokens": cold["tokens"],
    }


def microseconds(step: Callable[[Any, Any], Any], carry: Any, *data: Any) -> float:
    """Returns the median time of a step `(carry, (key, data)) -> carry` in a scan."""
    import jax

    @jax.jit
    def run(carry: Any, key: Any, *data: Any) -> Any:
        def body(carry: Any, i: Any) -> tuple[Any, None]:
            return step(carry, (jax.random.fold_in(key, i), *data)), None

        return jax.lax.scan(body, carry, jax.numpy.arange(STEPS))[0]

    times = []
    for seed in range(REPEATS + 1):
        begin = time.perf_counter()
        jax.block_until_ready(run(carry, jax.random.key(seed), *data))
        times.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(times[1:]) / STEPS


def measure_sampling() -> list[dict[str, Any]]:
    """Measures a batch of text, and a step of Adam for comparison."""
    import jax
    import jax.numpy as jnp
    import optax

    from tasks.data import text
    from tasks.models.mlp import MLP

    dataset = build("python", "bytes").load()

    def sample(carry: Any, data: Any, length: int) -> Any:
        key, dataset = data
        starts = text.draw_starts(dataset, key, "train", 1, 32, length)
        batch = text.gather(dataset, starts[0], "train", length)
        return carry + jnp.sum(batch.inputs) + jnp.sum(batch.targets)

    rows = []
    for length in (64, 128):
        time_ = microseconds(
            lambda c, d, length=length: sample(c, d, length), jnp.int32(0), dataset
        )
        rows.append({"what": f"batch of text, B 32, L {length}", "us": round(time_, 1)})

    model, optimizer = MLP((128, 128)), optax.adam(1e-3)
    params = model.init(jax.random.key(0), (784,), 10)
    images = jax.random.normal(jax.random.key(1), (128, 784))
    labels = jnp.arange(128) % 10

    def loss(params: Any, images: Any, labels: Any) -> Any:
        logits = model.apply(params, images, 10)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses)

    def adam(carry: Any, data: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *data[1:]), state)
        return optax.apply_updates(params, updates), state

    time_ = microseconds(adam, (params, optimizer.init(params)), images, labels)
    what = "step of Adam, MLP 784-128-128-10, batch 128"
    return [*rows, {"what": what, "us": round(time_, 1)}]


def main() -> None:
    """Measures, prints tables and appends JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one load, as 'python:bytes'; prints JSON")
    parser.add_argument("--out", type=Path, help="file of JSON lines to append to")
    arguments = parser.parse_args()
    if arguments.only:
        source, _, tokenizer = arguments.only.partition(":")
        print(json.dumps(load(source, tokenizer)))
        return
    folder = Path(os.environ.get("METATRAIN_DATA_DIR", "~/tensorflow_datasets"))
    rows: list[dict[str, Any]] = []
    print("source            tokenizer     cold s   warm s       tokens")
    for source in SOURCES:
        if source != "python" and not (folder.expanduser() / source).exists():
            print(f"{source:<17} not found in {folder}")
            continue
        for tokenizer in TOKENIZERS:
            rows.append(measure_loads(source, tokenizer))
            print(describe_load(rows[-1]), flush=True)
    print()
    for row in measure_sampling():
        rows.append(row)
        print(f"{row['what']:<44} {row['us']:>8.1f} µs")
    where = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row | where) + "\n" for row in rows))


def describe_load(row: dict[str, Any]) -> str:
    """Returns one line of the table."""
    tokens = ", ".join(f"{split} {count:,}" for split, count in row["tokens"].items())
    return (
        f"{row['source']:<17} {row['tokenizer']:<11} {row['cold_seconds']:>8.2f} "
        f"{row['warm_seconds']:>8.2f}       {tokens}"
    )


if __name__ == "__main__":
    main()
