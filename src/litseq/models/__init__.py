"""The models and their contract; torch alone."""

from litseq.models.base import ProjectingModel, Seq2SeqModel
from litseq.models.rnn import Rnn
from litseq.models.rnn_attention import RnnAttention
from litseq.models.transformer import Transformer

__all__ = ["ProjectingModel", "Rnn", "RnnAttention", "Seq2SeqModel", "Transformer"]
