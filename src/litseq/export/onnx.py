"""Any model in ONNX: an encoder, and one step of the decoder with all that it keeps.

The contract of a model is all that is known here: its state is a record of tensors, whatever they
mean, and the sizes in which two examples differ are those that may vary.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from litseq.engines.onnx import DECODER_STEP, ENCODER
from litseq.export.onnx_rnn import with_onnx_encoders
from litseq.models.base import Seq2SeqModel
from litseq.task import Seq2Seq
from litseq.types import DecoderState

__all__ = ["write_onnx"]


class _Encoder(nn.Module):
    def __init__(self, network: Seq2SeqModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        memory = self.network.encode(input_ids, attention_mask == 0)
        return tuple(_tensors(self.network.init_state(memory)).values())


class _Step(nn.Module):
    def __init__(self, network: Seq2SeqModel, state: DecoderState) -> None:
        super().__init__()
        self.network = network
        self.state = state

    def forward(self, token: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        logits, state = self.network.step(token, _filled(self.state, iter(tensors)))
        return logits, *_tensors(state).values()


@torch.no_grad()
def write_onnx(model: Seq2Seq, folder: Path) -> None:
    """Writes ``encoder.onnx`` and ``decoder_step.onnx``.

    Args:
        model: A model with its tokenizer, in evaluation mode on the CPU.
        folder: An empty folder.

    Raises:
        ModuleNotFoundError: If a package is missing that torch's exporter needs.
        ValueError: If torch cannot export the model.
    """
    try:
        import onnxscript  # noqa: F401 - torch's exporter looks for it late
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "an export to ONNX needs onnx and onnxscript, which are not installed: pip install "
            "'litseq[onnx]'.",
            name=error.name,
        ) from error
    network, tokenizer = model.network, model.tokenizer
    assert network is not None
    if tokenizer is None:
        raise ValueError("the checkpoint holds no tokenizer, and an export needs one.")
    small, large = (_example(network, *sizes) for sizes in ((2, 3, 1), (3, 5, 4)))
    names = list(_tensors(large[2]))
    _export(
        _Encoder(with_onnx_encoders(network)),
        [x[:2] for x in (small, large)],
        folder / ENCODER,
        inputs=["input_ids", "attention_mask"],
        outputs=names,
    )
    _export(
        _Step(network, large[2]),
        [(x[0][:, 0], *_tensors(x[2]).values()) for x in (small, large)],
        folder / DECODER_STEP,
        inputs=["token", *names],
        outputs=["logits", *(f"next.{name}" for name in names)],
    )


def _example(
    network: Seq2SeqModel, num_rows: int, length: int, steps: int
) -> tuple[Tensor, Tensor, DecoderState]:
    """Ids and mask of a source, int64 (num_rows, length), and the state after some steps."""
    src = torch.ones(num_rows, length, dtype=torch.int64)
    mask = torch.ones_like(src)
    mask[0, -1] = 0
    state = network.init_state(network.encode(src, mask == 0))
    for _ in range(steps):
        _, state = network.step(src[:, 0], state)
    return src, mask, state


def _export(
    module: nn.Module,
    examples: Sequence[Sequence[Tensor]],
    path: Path,
    *,
    inputs: list[str],
    outputs: list[str],
) -> None:
    import onnx

    small, large = examples
    sizes = tuple(
        {
            number: torch.export.Dim.DYNAMIC
            for number, (a, b) in enumerate(zip(x.shape, y.shape, strict=True))
            if a != b
        }
        for x, y in zip(small, large, strict=True)
    )
    # the star of a step's arguments is one argument
    dynamic = sizes if isinstance(module, _Encoder) else (sizes[0], sizes[1:])
    with _quiet():
        try:
            program = torch.onnx.export(
                module.eval(),
                tuple(large),
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=dynamic,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # torch wraps what it meets, of any kind
            cause = error.__cause__ or error
            reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
            raise ValueError(
                f"torch cannot export this model's {path.stem} to ONNX: {reason}"
            ) from error
    assert program is not None
    proto: Any = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = "inputs", " ".join(inputs)
    onnx.save(proto, str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter tells of packages that are not installed and of its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _tensors(state: DecoderState) -> dict[str, Tensor]:
    """All tensors of a record, by names such as past.0.1."""
    return dict(_leaves(state, ""))


def _leaves(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, tuple):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{name}.{number}")
    elif is_dataclass(value):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))


def _filled(value: Any, rest: Iterator[Tensor]) -> Any:  # noqa: ANN401 - of the kind of value
    """The same record with other tensors, in the order of ``_tensors``."""
    if isinstance(value, Tensor):
        return next(rest)
    if isinstance(value, tuple):
        return tuple(_filled(part, rest) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _filled(getattr(value, field.name), rest) for field in fields(value)}
        return replace(value, **parts)
    return value
