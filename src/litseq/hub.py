"""``save_pretrained``, ``push_to_hub`` and ``from_pretrained``, by Hugging Face's own mixin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from typing_extensions import Self

from litseq import checkpoints
from litseq.pretrained import CONFIG, WEIGHTS, write_pretrained

__all__ = ["HubModel"]

_FILES = [CONFIG, WEIGHTS, "tokenizer.json", "*.model"]
_CARD = Path(__file__).parent / "model_card.md"
_METRICS = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER"}
_CORPORA = ("train", "val", "test", "predict", "tokenizer")


class HubModel(ModelHubMixin, library_name="litseq", pipeline_tag="translation"):
    """Gives ``Seq2Seq`` what models of the Hugging Face Hub have.

    ``save_pretrained(folder)`` writes ``model.safetensors``, ``config.json``, the tokenizer and a
    model card; ``push_to_hub("name/model")`` uploads the same; ``from_pretrained`` takes either and
    restores the class that wrote it, with ``hparams`` and ``map_location`` as
    ``load_from_checkpoint`` has them. With ``model_card_kwargs={"scores": "RUN/test/scores.json"}``
    the card has the scores of ``litseq test`` and their signatures.
    """

    def _save_pretrained(self: Any, save_directory: Path) -> None:
        write_pretrained(
            save_directory,
            state_dict=self.state_dict(),
            hyper_parameters=dict(self.hparams),
            about=checkpoints.describe(type(self), None),
            data=_without_places(self.data_options()),
            tokenizer=self.tokenizer,
        )

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: torch.device | str = "cpu",
        hparams: Mapping[str, Any] | None = None,
        **given: Any,  # noqa: ANN401
    ) -> Self:
        # the mixin adds what config.json has
        if unknown := sorted(given.keys() - {"litseq", "hyper_parameters", "tied", "data"}):
            raise TypeError(
                f"from_pretrained has no {', '.join(unknown)}; options of the model go into "
                f"hparams."
            )
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=_FILES,
                )
            )
        load: Any = cls.load_from_checkpoint  # type: ignore[attr-defined]
        model: Self = load(folder, map_location=map_location, hparams=hparams)
        return model

    def generate_model_card(
        self: Any,
        *,
        scores: str | Path | Mapping[str, Any] | None = None,
        **head: Any,  # noqa: ANN401
    ) -> ModelCard:
        """Writes the card: what the model is, what it was trained on, and how good it is.

        Args:
            scores: What ``litseq test`` wrote, or its path; None: of the test that this object has
                run, if any.
            head: Further fields of the card's head, such as ``license``.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        found: Mapping[str, Any] = {}
        if isinstance(scores, (str, Path)):
            found = json.loads(Path(scores).read_text(encoding="utf-8"))
        elif scores is not None:
            found = scores
        elif self.evaluation is not None and self.evaluation.split == "test":
            found = asdict(self.evaluation.scores)
        rows = [
            (name, label, found[name], found["signatures"][name])
            for name, label in _METRICS.items()
            if found.get(name) is not None
        ]
        data = _without_places(self.data_options()) or {}
        tokenizer = self.tokenizer
        languages = [] if tokenizer is None else [tokenizer.src_lang, tokenizer.tgt_lang]
        known = [language for language in languages if language]
        kind = type(self).__name__
        corpus = str(data.get("dataset") or data.get("test") or "a test set")
        results = [
            EvalResult(
                task_type="translation",
                dataset_type=corpus,
                dataset_name=corpus,
                metric_type=name,
                metric_name=f"{label} ({signature})",
                metric_value=round(value, 2),
            )
            for name, label, value, signature in rows
        ]
        about = {
            "language": known or None,
            "library_name": "litseq",
            "pipeline_tag": "translation",
            "tags": ["seq2seq", "pytorch-lightning", "model_hub_mixin"],
            **({"model_name": kind, "eval_results": results} if results else {}),
            **head,
        }
        card: ModelCard = ModelCard.from_template(
            ModelCardData(**about),
            template_path=str(_CARD),
            kind=kind,
            direction=" to ".join(known),
            num_parameters=sum(weight.numel() for weight in self.parameters()),
            tokenizer=tokenizer,
            scores=rows,
            num_sentences=found.get("num_sentences"),
            data={name: value for name, value in data.items() if value is not None},
            options=dict(self.hparams),
        )
        return card


def _without_places(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Options of a DataModule without the folders of the machine that they name."""
    if data is None:
        return None
    plain = {name: value for name, value in data.items() if name != "cache_dir"}
    return {name: _name(value) if name in _CORPORA else value for name, value in plain.items()}


def _name(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_name(part) for part in value]
    return PurePath(value).name if isinstance(value, (str, PurePath)) else value
