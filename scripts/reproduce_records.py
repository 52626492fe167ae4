"""What came of one run of a recipe, as a record that can be kept for ever."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import lightning
import sacrebleu
import sentencepiece
import torch
import yaml

import litseq
from by_length import read_test
from by_length import score as score_by_length
from litseq import checkpoints
from litseq.evaluation import corpus_scores, legacy_bleu
from litseq.textfiles import whole_file
from recipes import Recipe

__all__ = ["circumstances", "make_record", "num_devices", "write_json"]

_HARDWARE_ONLY = ("accelerator", "devices", "num_nodes", "precision")
_SCHEDULE = ("max_steps", "max_epochs", "accumulate_grad_batches", "gradient_clip_val")


def make_record(
    recipe: Recipe, folder: Path, *, checkpoint: Path, seed: int, label: str
) -> dict[str, Any]:
    """Scores the test outputs of a run and gathers how they came about.

    Args:
        recipe: What was run.
        folder: Folder of the run.
        checkpoint: What was tested.
        seed: Seed of the run.
        label: Kind of machine, where there are several.

    Returns:
        Plain values, for a file that can be kept for ever.
    """
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    model, data, trainer = (config[name] for name in ("model", "data", "trainer"))
    began = json.loads((folder / "run.json").read_text("utf-8"))
    world_size = num_devices(trainer, began["hardware"]["gpus"]) * trainer["num_nodes"]
    _, hypotheses, references = read_test(folder)
    language = data["init_args"]["tgt_lang"]
    scores = corpus_scores(hypotheses, references, tgt_lang=language, confidence=True)
    record: dict[str, Any] = {
        "recipe": recipe.name,
        "seed": seed,
        "label": label,
        "scores": {
            "bleu": round(scores.bleu, 2),
            "chrf": round(scores.chrf, 2),
            "ter": None if scores.ter is None else round(scores.ter, 2),
            "exact_match": round(scores.exact_match, 2),
            "signature": scores.signatures["bleu"],
            **{f"{name}_interval": _interval(one) for name, one in scores.confidence.items()},
        },
    }
    if recipe.legacy:
        legacy = legacy_bleu(
            hypotheses, references, name=recipe.legacy, tgt_lang=language, confidence=True
        )
        record["legacy"] = {
            "name": legacy.name,
            "bleu": round(legacy.bleu, 2),
            "bleu_interval": _interval(legacy.confidence),
            "brevity_penalty": round(legacy.brevity_penalty, 3),
            "ref_len": legacy.ref_len,
            "signature": legacy.signature,
        }
    return {
        **record,
        "published": recipe.published and vars(recipe.published),
        "by_length": score_by_length(folder),
        "training": {
            **_weights(checkpoint),
            **_training(folder, data["init_args"], world_size=world_size),
        },
        "seconds": {stage: _seconds(folder, stage) for stage in ("fit", "average", "test")},
        **began,
        "config": {
            "model": {"class_path": model["class_path"], **model["init_args"]},
            "data": {k: v for k, v in data["init_args"].items() if k != "cache_dir"},
            "trainer": {name: trainer[name] for name in (*_HARDWARE_ONLY, *_SCHEDULE)},
        },
    }


def num_devices(trainer: dict[str, Any], gpus: list[str]) -> int:
    """How many devices of a machine a run has, with one process each."""
    devices = trainer["devices"]
    if isinstance(devices, str) and "," in devices:  # a list of their numbers, as "1," is
        devices = [number for number in devices.strip("[]").split(",") if number.strip()]
    if isinstance(devices, list):
        return len(devices)
    if str(devices).isdigit():
        return int(devices)
    return 1 if trainer["accelerator"] == "cpu" else max(1, len(gpus))


def circumstances() -> dict[str, Any]:
    """Versions, and the machine as far as it decides how long something takes."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    modules = (torch, lightning, litseq, sacrebleu, sentencepiece)
    return {
        "hardware": {
            "cpu": cpu,
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in modules},
        },
    }


def write_json(file: Path, values: Any) -> None:  # noqa: ANN401 - plain values
    """Writes values that people read too, all or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as text:
        text.write(json.dumps(values, ensure_ascii=False, indent=1) + "\n")


def _training(folder: Path, data: dict[str, Any], *, world_size: int) -> dict[str, Any]:
    """Steps, tokens and the course of validation."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    validated = [row for row in rows if row.get("val/loss")]
    datamodule = litseq.TranslationDataModule(**data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    src, tgt = loader.num_tokens
    epochs = [int(row["epoch"]) + 1 for row in validated]
    curve = {
        name: [round(float(row[f"val/{name}"]), 4) for row in validated if row.get(f"val/{name}")]
        for name in ("nll", "bleu")
    }
    end = checkpoints.read(folder / "checkpoints/last.ckpt")
    # not by steps, for the last of an epoch may have fewer batches
    batches = end["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
    done = batches / math.ceil(len(loader) / world_size)
    return {
        "steps": end["global_step"],
        "epochs": round(done, 2),
        "src_tokens": round(src * done),
        "tgt_tokens": round(tgt * done),
        "tgt_tokens_per_epoch": tgt,
        "val": {"epoch": epochs, **{k: v for k, v in curve.items() if v}},
    }


def _weights(checkpoint: Path) -> dict[str, int]:
    """How many numbers a model has, and of how many checkpoints they are the average."""
    state = checkpoints.read(checkpoint)
    # by name, shared weights stand there twice
    tensors = {weight.data_ptr(): weight.numel() for weight in state["state_dict"].values()}
    return {
        "parameters": sum(tensors.values()),
        "averaged": len(state["litseq"].get("average", ())),
    }


def _seconds(folder: Path, stage: str) -> float | None:
    files = list(folder.glob(f"{stage}-*.seconds"))
    # of a power cut in between, a file may be empty
    return round(sum(float(file.read_text() or 0) for file in files)) if files else None


def _interval(interval: Any) -> list[float]:  # noqa: ANN401 - litseq.evaluation.Interval
    return [round(interval.low, 2), round(interval.high, 2)]
