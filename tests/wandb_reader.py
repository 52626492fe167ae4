"""Reads back what an offline W&B run wrote: wandb itself has no reader for it."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class OfflineRun:
    """One offline run.

    Attributes:
        config: The run's configuration.
        history: What was logged, one dict per call; nested keys are joined by a slash, keys that
            wandb adds begin with an underscore.
        summary: The run's summary; nested keys are joined by a slash.
        tables: The rows of each table file, in the order of logging, by the table's key.
        columns: The column names of the last table, by its key.
        artifacts: The records of artifacts that W&B does not make of its own accord.
        files: Names of the files that are sent along.
        folder: Where they lie.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[list[list[Any]]]] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    files: set[str] = field(default_factory=set)

    def values(self, key: str) -> list[Any]:
        return [row[key] for row in self.history if key in row]


def _payloads(path: Path) -> Iterator[bytes]:
    # LevelDB's log format behind a file header of 7 bytes: blocks of 32 KiB with pieces of records,
    # each behind its checksum, length and kind (1 whole, 2 first, 3 middle, 4 last).
    data, at, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        _, length, kind = struct.unpack_from("<IHB", data, at) if left >= 7 else (0, 0, 0)
        if kind == 0:  # the rest of the block is empty
            at += left
            continue
        if at + 7 + length > len(data):
            return  # still being written
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def _records(path: Path) -> list[Any]:
    from wandb.proto import wandb_internal_pb2

    return [wandb_internal_pb2.Record.FromString(payload) for payload in _payloads(path)]


def _finished_records(path: Path, *, seconds: float = 20) -> list[Any]:
    # wandb's service may still hold the file's end when wandb.finish() returns; the record of the
    # run's exit closes it.
    end = time.monotonic() + seconds
    while True:
        records = _records(path)
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < end, f"{path} is not complete after {seconds} s"
        time.sleep(0.02)


def read_offline_run(save_dir: str | Path) -> OfflineRun:
    """Reads the only run below ``save_dir``, after ``wandb.finish()``."""
    (path,) = Path(save_dir).glob("wandb/offline-run-*/run-*.wandb")
    run = OfflineRun(path.parent / "files")
    for record in _finished_records(path):
        for item in (*record.run.config.update, *record.config.update):
            run.config["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            items = record.history.item
            run.history.append(
                {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
            )
        for item in record.summary.update:
            run.summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        if record.HasField("artifact") and record.artifact.type != "run_table":
            run.artifacts.append(record.artifact)
        run.files |= {file.path for file in record.files.files}
    for row in run.history:
        for key in [k.removesuffix("/path") for k in row if k.endswith("/path")]:
            table = json.loads((run.folder / row[f"{key}/path"]).read_text(encoding="utf-8"))
            run.tables.setdefault(key, []).append(table["data"])
            run.columns[key] = table["columns"]
    return run


@pytest.fixture
def offline_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], OfflineRun]]:
    """Makes wandb write below ``tmp_path`` only; call the value to end the run and read it."""
    import wandb

    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_DIR": str(tmp_path),
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_DATA_DIR": str(tmp_path / "data"),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "WANDB_DISABLE_GIT": "true",
        "WANDB_X_DISABLE_STATS": "true",
    }.items():
        monkeypatch.setenv(name, value)

    def finish() -> OfflineRun:
        wandb.finish()
        return read_offline_run(tmp_path)

    yield finish
    wandb.finish()
