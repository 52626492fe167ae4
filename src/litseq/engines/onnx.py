"""A model in ONNX, behind the contract of litseq's own, so that every search works with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litseq.models.base import Seq2SeqModel
from litseq.types import DecoderState, Memory

__all__ = ["DECODER_STEP", "ENCODER", "OnnxModel", "OnnxState"]

ENCODER = "encoder.onnx"
"""Reads ``input_ids`` and ``attention_mask``, int64 (B, S); writes the decoder's first state."""

DECODER_STEP = "decoder_step.onnx"
"""Reads ``token``, int64 (B,), and a state; writes ``logits``, float (B, V), and the next state."""


@dataclass(frozen=True)
class OnnxState(DecoderState):
    """The tensors of a decoder's state, in the order of the files' names for them."""

    tensors: tuple[Tensor, ...]


class OnnxModel(Seq2SeqModel):
    """Runs what ``litseq export --to onnx`` made, by onnxruntime on the CPU.

    It generates and nothing else: encode, init_state and step.

    Args:
        folder: What the export made.

    Raises:
        ModuleNotFoundError: If onnxruntime is not installed.
        ValueError: If a file is missing or none of ONNX.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "onnxruntime is not installed: pip install 'litseq[onnx]'.", name=error.name
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors alone
        sessions = []
        for name in (ENCODER, DECODER_STEP):
            try:
                session = onnxruntime.InferenceSession(
                    str(folder / name), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # onnxruntime has a dozen kinds of its own
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"onnxruntime cannot read {folder / name}: {reason}; export it again."
                ) from error
            sessions.append(session)
        self._encoder, self._step = sessions

    def encode(self, src: Tensor, src_key_padding_mask: Tensor) -> Memory:
        """Reads the source; ``state`` holds the decoder's first one."""
        mask = (~src_key_padding_mask).long()
        state = _run(self._encoder, (src, mask))
        return Memory(output=mask, key_padding_mask=src_key_padding_mask, state=state)

    def init_state(self, memory: Memory) -> OnnxState:
        """Takes the state that the encoder wrote."""
        return OnnxState(memory.state)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, OnnxState]:
        """Reads one more token, int64 (B,), and scores the next; logits, float (B, V)."""
        assert isinstance(state, OnnxState)
        logits, *tensors = _run(self._step, (token, *state.tensors))
        return logits, OnnxState(tuple(tensors))

    def decode(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        """Scores every next token of a given target, int64 (B, T), step by step."""
        state = self.init_state(memory)
        logits = []
        for token in tgt_in.unbind(1):
            scores, state = self.step(token, state)
            logits.append(scores)
        return torch.stack(logits, 1)


def _run(session: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:  # noqa: ANN401 - untyped library
    # what a model does not need, such as the mask of a source without positions, is no input
    wanted = {node.name for node in session.get_inputs()}
    names = session.get_modelmeta().custom_metadata_map["inputs"].split()
    given = {
        name: tensor.numpy(force=True)
        for name, tensor in zip(names, inputs, strict=True)
        if name in wanted
    }
    return tuple(map(torch.from_numpy, session.run(None, given)))
