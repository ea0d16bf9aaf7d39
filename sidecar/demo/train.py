"""A user's training script: softmax regression on small images, standard library only.

Two variables say where data is and where results go; both are directories. The script prints each
event as a line of JSON, with the SHA-256 of what it read or saved, for the demo to check. It
imports nothing of the product.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import random
import sys
from operator import mul
from pathlib import Path

CLASSES = 10

Sample = tuple[list[float], int]
Weights = list[list[float]]


def main() -> None:
    """Read, train, save."""
    data = {k: Path(v) for k, v in json.loads(os.environ["POLYAXON_RUN_DATA_PATHS"]).items()}
    outputs = Path(os.environ["POLYAXON_RUN_OUTPUTS_PATH"])
    settings = json.loads((data["settings"] / "train.json").read_text())
    samples = read_samples(data["images"], data["labels"] / "labels.csv")
    train(samples["train"], samples["test"], outputs, settings)


def read_samples(images: Path, table: Path) -> dict[str, list[Sample]]:
    """The samples of each split: 64 grey values in [0, 1] and a constant 1, with the label."""
    samples: dict[str, list[Sample]] = {"train": [], "test": []}
    digest = hashlib.sha256()
    size_bytes = 0
    with table.open(newline="") as rows:
        for row in csv.DictReader(rows):
            content = (images / row["file"]).read_bytes()
            digest.update(content)
            size_bytes += len(content)
            pixels = content.split(b"\n", 3)[3]
            features = [value / 16 for value in pixels] + [1.0]
            samples[row["split"]].append((features, int(row["label"])))
    files = sum(map(len, samples.values()))
    tell("read", files=files, size_bytes=size_bytes, sha256=digest.hexdigest())
    return samples


def train(
    samples: list[Sample], held_out: list[Sample], outputs: Path, settings: dict[str, float]
) -> None:
    """Stochastic gradient descent. Saves a checkpoint and a line of metrics after each epoch."""
    order = random.Random(settings["seed"])  # noqa: S311 - no secret, a repeatable shuffle
    weights = [[0.0] * len(samples[0][0]) for _ in range(CLASSES)]
    epochs = int(settings["epochs"])
    checkpoints = outputs / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    lines: list[str] = []
    with (outputs / "metrics.jsonl").open("w") as log:
        for epoch in range(1, epochs + 1):
            order.shuffle(samples)
            loss = sum(learn(weights, sample, settings["rate"]) for sample in samples)
            accuracy = score(weights, held_out)
            record = {"epoch": epoch, "loss": loss / len(samples), "accuracy": accuracy}
            lines.append(json.dumps(record) + "\n")
            log.write(lines[-1])
            log.flush()
            tell("epoch", epochs=epochs, **record)
            save(checkpoints / f"epoch-{epoch:02d}.json", {**record, "weights": weights})
    save(outputs / "model.json", {"weights": weights})
    tell_saved(outputs / "metrics.jsonl", "".join(lines).encode())


def learn(weights: Weights, sample: Sample, rate: float) -> float:
    """One step of gradient descent on one sample; its cross-entropy in nats."""
    features, label = sample
    probabilities = predict(weights, features)
    for digit, row in enumerate(weights):
        step = rate * (probabilities[digit] - (digit == label))
        for index, value in enumerate(features):
            row[index] -= step * value
    return -math.log(max(probabilities[label], 1e-12))


def predict(weights: Weights, features: list[float]) -> list[float]:
    """The probability of each class."""
    scores = [sum(map(mul, row, features)) for row in weights]
    highest = max(scores)
    powers = [math.exp(value - highest) for value in scores]
    total = sum(powers)
    return [power / total for power in powers]


def score(weights: Weights, samples: list[Sample]) -> float:
    """The share of samples that are classified correctly, from 0 to 1."""
    hits = 0
    for features, label in samples:
        probabilities = predict(weights, features)
        hits += probabilities.index(max(probabilities)) == label
    return hits / len(samples)


def save(path: Path, content: dict[str, object]) -> None:
    """Save as ML libraries do: temporary name, fsync, rename."""
    data = json.dumps(content).encode()
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    tell_saved(path, data)


def tell_saved(path: Path, data: bytes) -> None:
    """Print that ``data`` was written to ``path``."""
    tell("saved", path=str(path), size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def tell(event: str, **facts: object) -> None:
    """Print one event as a line of JSON."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
