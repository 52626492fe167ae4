"""Seq2Seq: the LightningModule around any model of the contract."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from operator import attrgetter
from os import PathLike
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torchmetrics import MetricCollection, SumMetric
from typing_extensions import Self

from litseq import checkpoints, sharding
from litseq.data.tokenizer import TranslationTokenizer
from litseq.decoding import SearchOptions
from litseq.evaluation import Evaluation, corpus_scores
from litseq.heap import give_back, keep_freed
from litseq.hub import HubModel
from litseq.layers.linear import Packing
from litseq.layers.sizes import check_finite
from litseq.losses import TokenLoss, check_label_smoothing, r_drop_loss, token_loss
from litseq.models.base import ProjectingModel, Seq2SeqModel
from litseq.optimizers import check_optimizer, make_optimizer, make_scheduler, stepped
from litseq.projected_loss import projected_loss
from litseq.schedules import Schedule, check_schedule
from litseq.translator import Translator
from litseq.types import Batch, Translation, check_batch, shift_right

__all__ = ["Seq2Seq"]

Split = Literal["train", "val", "test", "predict"]

_GIVE_BACK_EVERY = 30.0  # seconds

# Training returns a sum over tokens, so that micro-batches and devices add up. Backpropagating it
# in thousands of tokens keeps half-precision gradients within range; the factor cancels exactly.
TOKEN_UNIT = 1024


class Seq2Seq(HubModel, pl.LightningModule, ABC):
    """Trains, scores and decodes a sequence-to-sequence model.

    A batch is the mapping that Hugging Face collators produce: ``input_ids``, ``attention_mask``,
    ``labels`` (-100 = padding), and optionally ``id``; whoever loads it. The first one of each kind
    is checked. Subclasses say which network it is: see
    ``litseq.architectures`` for ours; your own takes a constructor and ``build_network``.

    Args:
        vocab_size: Number of target tokens. None: from the DataModule's tokenizer.
        src_vocab_size: Number of source tokens where the source has a vocabulary of its own.
        pad_id: Id of padding.
        bos_id: Id that begins every target.
        eos_id: Id that ends every source and target.
        label_smoothing: Share of the target distribution that is spread over all tokens.
        r_drop: Weight of R-Drop (Liang et al. 2021; there 5 for translation): each training batch
            passes twice, with two draws of dropout, and what the two predict shall agree. A step
            is twice the work, and ``train/loss`` has the disagreement in it; 0: none.
        optimizer: Adam, or AdamW with decoupled weight decay.
        lr: Peak learning rate. The paper's formula peaks at (d_model * warmup_steps) ** -0.5.
        betas: Adam's decay rates of the first and second moment.
        eps: Adam's denominator offset.
        weight_decay: Weight decay.
        schedule: Course of the learning rate after the warm-up.
        warmup_steps: Optimizer steps until the peak learning rate.
        lr_scheduler: Any torch scheduler in place of ``schedule``; stepped after every optimizer
            step, ReduceLROnPlateau by val/loss after every epoch that is validated.
        beam_size: Hypotheses kept per sentence in test and predict; 1 is greedy.
        length_penalty: Exponent of the length normalisation in beam search.
        length_offset: Lengths are counted from it; 5 is Wu et al.'s (2016), 0 divides by the length
            itself, as fairseq, Marian and Hugging Face do.
        patience: A beam ends when ``patience * beam_size`` sequences of a sentence have ended; 1 is
            what fairseq and CTranslate2 do. None: when nothing better can come.
        n_best: Hypotheses returned per sentence in test and predict; scores are the best's.
        max_len_a: Longest output is max_len_a * source tokens + max_len_b.
        max_len_b: See ``max_len_a``.
        val_beam_size: Hypotheses kept per sentence in validation.
        val_decode: Whether validation decodes and scores, or computes the loss alone.
        alignment: Whether predict also aligns the words of source and translation.

    Raises:
        ValueError: If an option is out of its range.
    """

    def __init__(
        self,
        *,
        vocab_size: int | None = None,
        src_vocab_size: int | None = None,
        pad_id: int = 0,
        bos_id: int = 2,
        eos_id: int = 3,
        label_smoothing: float = 0.1,
        r_drop: float = 0.0,
        optimizer: Literal["adam", "adamw"] = "adam",
        lr: float = 7e-4,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-9,
        weight_decay: float = 0.0,
        schedule: Schedule = "inverse_sqrt",
        warmup_steps: int = 4000,
        lr_scheduler: LRSchedulerCallable | None = None,
        beam_size: int = 4,
        length_penalty: float = 0.6,
        length_offset: float = 5.0,
        patience: float | None = None,
        n_best: int = 1,
        max_len_a: float = 1.0,
        max_len_b: int = 50,
        val_beam_size: int = 1,
        val_decode: bool = True,
        alignment: bool = False,
    ) -> None:
        super().__init__()
        check_label_smoothing(label_smoothing)
        check_optimizer(optimizer)
        check_schedule(schedule, warmup_steps)
        if r_drop < 0:
            raise ValueError(f"r_drop must be at least 0, got {r_drop}; 0 switches it off.")
        check_finite(r_drop=r_drop, lr=lr, eps=eps, weight_decay=weight_decay)
        # a scheduler is made of code, and a checkpoint holds none
        self.save_hyperparameters(ignore="lr_scheduler")
        self.lr_scheduler = lr_scheduler
        self.search_options = SearchOptions(
            beam_size=beam_size,
            length_penalty=length_penalty,
            length_offset=length_offset,
            n_best=n_best,
            patience=patience,
            max_len_a=max_len_a,
            max_len_b=max_len_b,
        )
        self.val_search_options = SearchOptions(
            beam_size=val_beam_size,
            length_penalty=length_penalty,
            length_offset=length_offset,
            patience=patience,
            max_len_a=max_len_a,
            max_len_b=max_len_b,
        )
        self.network: Seq2SeqModel | None = None
        self._saved_data: Mapping[str, Any] | None = None
        self.tokenizer: TranslationTokenizer | None = None
        self.evaluation: Evaluation | None = None
        self._translations: list[Translation] = []
        self._num_examples = 0
        self._num_tokens: Tensor | None = None
        self._gave_back = 0.0
        self._checked: set[Split] = set()
        self.val_sums, self.test_sums = _token_sums(), _token_sums()

    # ---- the network ----

    @abstractmethod
    def build_network(self, vocab_size: int, src_vocab_size: int | None) -> Seq2SeqModel:
        """Makes the network.

        Args:
            vocab_size: Number of target tokens.
            src_vocab_size: Number of source tokens; None = one vocabulary for both sides.
        """

    def setup(self, stage: str) -> None:
        """Takes vocabulary and ids from the DataModule's tokenizer, if it has a litseq one."""
        tokenizer = getattr(self._datamodule(), "tokenizer", None)
        if isinstance(tokenizer, TranslationTokenizer):
            self._adopt(tokenizer)

    def configure_model(self) -> None:
        """Builds the network once the vocabulary is known; does nothing the second time.

        Raises:
            ValueError: If neither the constructor nor the DataModule's tokenizer gives a size, or
                if the strategy would split layers.
        """
        if self.network is not None:
            return
        if self.hparams["vocab_size"] is None and self._trainer is not None:
            self.setup("fit")  # weight averaging builds the model before Lightning calls setup
        if self.hparams["vocab_size"] is None:
            datamodule = self._datamodule()
            where = "" if datamodule is None else f" ({type(datamodule).__name__} has none)"
            raise ValueError(
                f"vocab_size is unknown without a litseq tokenizer{where}; pass vocab_size (and "
                f"src_vocab_size where the source has its own vocabulary)."
            )
        self.network = self.build_network(
            self.hparams["vocab_size"], self.hparams["src_vocab_size"]
        )
        if self._device_mesh is not None:  # of a ModelParallelStrategy
            if self._device_mesh["tensor_parallel"].size() > 1:
                raise ValueError(
                    f"layers cannot be split, but tensor_parallel_size is "
                    f"{self._device_mesh['tensor_parallel'].size()}; set it to 1 and "
                    f"data_parallel_size to the number of devices."
                )
            sharding.shard(self.network, self._device_mesh["data_parallel"])

    def _datamodule(self) -> Any:  # noqa: ANN401 - anybody's, or None
        return getattr(self._trainer, "datamodule", None)

    def _adopt(self, tokenizer: TranslationTokenizer) -> None:
        """Takes sizes and ids from the tokenizer, or refuses one that does not fit."""
        checkpoints.check_tokenizer(self.tokenizer, tokenizer)
        ours = {
            "vocab_size": tokenizer.tgt_vocab_size,
            "src_vocab_size": None if tokenizer.shared else tokenizer.src_vocab_size,
        }
        for name, size in ours.items():
            given = self.hparams[name]
            if given is not None and given != size:
                raise ValueError(
                    f"{name} is {given} but the tokenizer (sha256 {tokenizer.fingerprint[:12]}) "
                    f"has {size}; leave {name} out or use the tokenizer it was meant for."
                )
        ids = {name: getattr(tokenizer, name) for name in ("pad_id", "bos_id", "eos_id")}
        self.hparams.update({**ours, **ids})
        self.tokenizer = tokenizer

    def _model(self) -> Seq2SeqModel:
        if self.network is None:
            self.configure_model()
        assert self.network is not None
        return self.network

    # ---- training ----

    def on_fit_start(self) -> None:
        """Lets the process keep freed memory, on a CPU (``litseq.heap``)."""
        self._keep_freed()

    def on_train_start(self) -> None:
        """Forgets the tokens of an accumulation that was broken off."""
        self._num_tokens = None
        self._gave_back = time.monotonic()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Gives freed memory back now and then, in bfloat16 on a CPU.

        There each new shape has a plan of its own, which stays, and they are so scattered that
        what is freed between them serves no longer for large tensors.
        """
        now = time.monotonic()
        if (
            self.device.type == "cpu"
            and str(self.trainer.precision).startswith("bf16")
            and now - self._gave_back >= _GIVE_BACK_EVERY
        ):
            give_back()
            self._gave_back = now

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Scores the given targets.

        Args:
            input_ids: int64 (B, S).
            attention_mask: int64 (B, S); 1 = token.
            labels: int64 (B, T); -100 = padding.

        Returns:
            Logits, float (B, T, V); position t is the score of ``labels[:, t]``.
        """
        logits: Tensor = self._model()(input_ids, attention_mask == 0, self._tgt_in(labels))
        return logits

    def _tgt_in(self, labels: Tensor) -> Tensor:
        return shift_right(labels, bos_id=self.hparams["bos_id"], pad_id=self.hparams["pad_id"])

    def _check_first(self, batch: Batch, split: Split) -> None:
        """Looks at the first batch of each kind: it may be anybody's."""
        if split not in self._checked:
            size, src_size = (self.hparams[name] for name in ("vocab_size", "src_vocab_size"))
            check_batch(
                batch,
                src_vocab_size=src_size or size,
                tgt_vocab_size=size,
                labels=split != "predict",
            )
            self._checked.add(split)

    def _loss(self, batch: Batch) -> TokenLoss:
        network, labels = self._model(), batch["labels"]
        inner = getattr(network, "_orig_mod", network)  # of a compiled one
        inputs = batch["input_ids"], batch["attention_mask"] == 0, self._tgt_in(labels)
        smoothing = self.hparams["label_smoothing"]
        if not isinstance(inner, ProjectingModel):
            return token_loss(network(*inputs), labels, label_smoothing=smoothing)
        hidden = network(*inputs, project=False)
        return projected_loss(hidden, inner.output, labels, label_smoothing=smoothing)

    def _loss_of_two(self, batch: Batch, r_drop: float) -> TokenLoss:
        """R-Drop: the mean loss of two passes, and how far they disagree."""
        inputs, mask, labels = (
            torch.cat((batch[name],) * 2) for name in ("input_ids", "attention_mask", "labels")
        )
        return r_drop_loss(
            self(inputs, mask, labels),
            batch["labels"],
            label_smoothing=self.hparams["label_smoothing"],
            weight=r_drop,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the summed loss; ``on_before_optimizer_step`` divides by the tokens."""
        self._check_first(batch, "train")
        r_drop = self.hparams["r_drop"]
        loss, nll, num_tokens = self._loss_of_two(batch, r_drop) if r_drop else self._loss(batch)
        self._num_tokens = num_tokens + (0 if self._num_tokens is None else self._num_tokens)
        num_tokens = num_tokens.clamp(min=1)  # a batch without a label has no gradient, not NaN
        nll_per_token = nll / num_tokens
        size = batch["input_ids"].size(0)
        self.log("train/loss", loss.detach() / num_tokens, prog_bar=True, batch_size=size)
        self.log_dict(
            {"train/nll": nll_per_token, "train/ppl": nll_per_token.exp()}, batch_size=size
        )
        return loss / TOKEN_UNIT

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turns the gradient of the sum into that of the mean over *all* tokens of the step.

        All micro-batches and all devices count: k micro-batches on N devices give the gradient of
        the one big batch, however unevenly the tokens fall.
        """
        assert self._num_tokens is not None
        num_tokens = self._num_tokens
        if self.trainer.world_size > 1:
            num_tokens = self.trainer.strategy.reduce(num_tokens, reduce_op="sum")
        # Lightning divided by the number of micro-batches, DDP by the number of devices
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        self._num_tokens = None
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if not grads:  # a callback has decided that this step is left out
            return
        factor = (parts * TOKEN_UNIT / num_tokens.clamp(min=1)).to(grads[0].dtype)
        torch._foreach_mul_([sharding.local(grad) for grad in grads], factor)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set at run time
        if every and (self.trainer.global_step + 1) % every == 0:
            norm = torch.nn.utils.get_total_norm(grads)
            self.log("train/grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)
            self.log("train/lr", optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Makes Adam or AdamW and a scheduler that is stepped after every optimizer step."""
        options = self.hparams
        optimizer = make_optimizer(self.parameters(), options, trainer=self.trainer)
        if self.lr_scheduler is not None:
            chosen = self.lr_scheduler(optimizer)
        else:
            chosen = make_scheduler(optimizer, options, trainer=self.trainer)
        return stepped(optimizer, chosen, trainer=self.trainer)

    # ---- validation, test and predict ----

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sums the loss and decodes."""
        self._evaluate(
            batch, "val", self.val_search_options if self.hparams["val_decode"] else None
        )

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Sums the loss and decodes."""
        self._evaluate(batch, "test", self.search_options)

    def on_validation_start(self) -> None:
        """Gathers a sharded network, so that ranks may differ in what they do."""
        self._keep_freed()
        sharding.gather(self.network)

    def on_validation_end(self) -> None:
        """Shards it again."""
        sharding.scatter(self.network)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def _keep_freed(self) -> None:
        if self.device.type == "cpu":  # known from here on, not in ``setup``
            keep_freed()

    def on_validation_epoch_start(self) -> None:
        """Begins new sums."""
        self._begin_sums("val")
        self._translations, self._num_examples = [], 0

    def on_test_epoch_start(self) -> None:
        """Begins new sums."""
        self._begin_sums("test")
        self._translations, self._num_examples = [], 0

    def on_predict_epoch_start(self) -> None:
        """Begins to count."""
        self._num_examples = 0

    def on_validation_epoch_end(self) -> None:
        """Scores the epoch's translations."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Scores the epoch's translations."""
        self._score("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Translation]:
        """Translates a batch with the search options of the constructor.

        Raises:
            ValueError: If there is no tokenizer to turn ids into text.
        """
        translator = self.translator()
        if translator is None:
            raise ValueError(
                "predict needs a tokenizer to turn ids into text; give the DataModule a "
                "'tokenizer' attribute that has a decode method."
            )
        self._check_first(batch, "predict")
        if _is_filler(batch):
            return []
        options = replace(self.search_options, attention=self.hparams["alignment"])
        return self._translate_batch(translator, batch, "predict", options)

    def on_predict_epoch_end(self) -> None:
        """Gives ``trainer.predict`` its translations in the order of the input, not of length."""
        batches = self.trainer.predict_loop.predictions
        in_order = iter(sorted(chain.from_iterable(batches), key=attrgetter("id")))
        batches[:] = [list(islice(in_order, len(batch))) for batch in batches]

    def _sums(self, split: Split) -> MetricCollection:
        return self.val_sums if split == "val" else self.test_sums

    def _begin_sums(self, split: Split) -> None:
        # bf16-true has turned them into bfloat16 like the weights; there, 300 + 1 is 300
        sums = self._sums(split)
        sums.set_dtype(torch.float64 if self.dtype == torch.float64 else torch.float32)
        sums.reset()

    def _evaluate(self, batch: Batch, split: Split, options: SearchOptions | None) -> None:
        self._check_first(batch, split)
        if _is_filler(batch):
            return
        for name, total in self._loss(batch)._asdict().items():
            self._sums(split)[name].update(total)
        translator = self.translator()
        if options is not None and translator is not None:
            self._translations += self._translate_batch(translator, batch, split, options)

    def _translate_batch(
        self, translator: Translator, batch: Batch, split: Split, options: SearchOptions
    ) -> list[Translation]:
        texts = translator.translate_batch(batch, options)
        ids = batch["id"].tolist() if "id" in batch else self._number(len(texts))
        sources, references = self._raw_texts(translator, batch, split, ids)
        return list(map(Translation, ids, sources, texts, references))

    def _number(self, count: int) -> list[int]:
        """Numbers foreign examples as Lightning deals them: by turns to the ranks."""
        first, self._num_examples = self._num_examples, self._num_examples + count
        ranks = self.trainer.world_size
        return [i * ranks + self.trainer.global_rank for i in range(first, first + count)]

    def _raw_texts(
        self, translator: Translator, batch: Batch, split: Split, ids: Sequence[int]
    ) -> tuple[Sequence[str], Sequence[str | None]]:
        """Asks the DataModule for the raw text, or decodes ids where it keeps none."""
        nothing = [None] * len(ids)
        texts = getattr(self._datamodule(), "texts", None)
        if texts is not None:
            sources, references = texts(split, ids)
            return sources, references or nothing
        sources = [translator.source_text(row) for row in batch["input_ids"].tolist()]
        if "labels" not in batch:
            return sources, nothing
        return sources, [translator.target_text(row) for row in batch["labels"].tolist()]

    def _score(self, split: Split) -> None:
        sums = self._sums(split).compute()  # over all ranks
        nll = sums["nll"] / sums["num_tokens"]
        loss = sums["loss"] / sums["num_tokens"]
        # equal on all ranks; a mean of three equal numbers need not be that number
        same: Any = {"sync_dist": True, "reduce_fx": "max"}
        self.log(f"{split}/loss", loss, prog_bar=True, **same)
        self.log_dict({f"{split}/nll": nll, f"{split}/ppl": nll.exp()}, **same)
        translations, self._translations = self._translations, []
        if self.trainer.world_size > 1:
            ranks: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(ranks, translations)
            translations = [translation for rank in ranks for translation in rank]
        by_id = {translation.id: translation for translation in translations}
        translations = [by_id[i] for i in sorted(by_id)]
        references = [t.reference for t in translations if t.reference is not None]
        self.evaluation = None
        if not references or len(references) < len(translations):
            return
        scores = corpus_scores(
            [t.text for t in translations],
            references,
            tgt_lang=None if self.tokenizer is None else self.tokenizer.tgt_lang,
            # early outputs are endless, and TER takes minutes over them
            ter=self.trainer.state.fn != TrainerFn.FITTING,
            confidence=split == "test",
        )
        self.evaluation = Evaluation(split, tuple(translations), scores)
        for name in ("bleu", "chrf", "ter", "exact_match"):
            value = getattr(scores, name)
            if value is not None:
                self.log(f"{split}/{name}", value, prog_bar=name == "bleu", **same)

    # ---- translating text ----

    def translator(self, *, int8: bool = False) -> Translator | None:
        """Puts network and tokenizer together, where there is a tokenizer.

        Args:
            int8: Multiplies in 8 bits on a CPU; the weights must stay as they are.

        Raises:
            ValueError: If it cannot multiply in 8 bits here.
        """
        if int8 and self.device.type != "cpu":
            raise ValueError(
                f"int8 is for a CPU, the model is on {self.device}; move it there, or give "
                f"--device cpu."
            )
        tokenizer = self.tokenizer
        if tokenizer is None:
            tokenizer = getattr(self._datamodule(), "tokenizer", None)
        if tokenizer is None:
            return None
        h = self.hparams
        return Translator(
            tokenizer,
            pad_id=h["pad_id"],
            bos_id=h["bos_id"],
            eos_id=h["eos_id"],
            model=self._model(),
            packing=Packing(int8=True) if int8 else None,
        )

    def translate(
        self, texts: Sequence[str], *, options: SearchOptions | None = None, max_tokens: int = 4096
    ) -> list[str]:
        """Translates raw text; ``translations`` says more of it.

        Returns:
            Detokenised text, one per source, in the same order.
        """
        return [t.text for t in self.translations(texts, options=options, max_tokens=max_tokens)]

    def translations(
        self,
        texts: Sequence[str],
        *,
        options: SearchOptions | None = None,
        max_tokens: int = 4096,
        max_src_len: int = 256,
        first_id: int = 0,
        int8: bool = False,
    ) -> list[Translation]:
        """Translates raw text, with scores and alternatives.

        Args:
            texts: Raw source sentences; a blank one has a blank translation.
            options: How to search. None: as the constructor says.
            max_tokens: Padded source tokens per batch.
            max_src_len: Tokens of a source that are read at most; longer ones are cut, and counted
                in a warning.
            first_id: Id of the first text, where these are a part of more: ids choose the random
                numbers of sampling.
            int8: Multiplies in 8 bits, which is faster on a CPU and costs a little quality.

        Raises:
            ValueError: If the module has no litseq tokenizer, or cannot multiply in 8 bits here.
        """
        translator = self.translator(int8=int8)
        if translator is None:
            raise ValueError(
                "translating text needs a tokenizer; load a litseq checkpoint that holds one, or "
                "fit with a litseq DataModule."
            )
        training = self.training
        self.eval()
        try:
            return translator.translate(
                texts,
                options or self.search_options,
                max_tokens=max_tokens,
                max_src_len=max_src_len,
                device=self.device,
                first_id=first_id,
            )
        finally:
            self.train(training)

    # ---- checkpoints ----

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the class and the tokenizer, so that the file alone can translate."""
        checkpoint["litseq"] = checkpoints.describe(type(self), self.tokenizer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another model or tokenizer.

        Raises:
            ValueError: If the checkpoint does not fit; the message names both sides. Or if it has
                no state of a training that ``fit`` could resume.
        """
        checkpoints.check_fits(checkpoint, self, self.tokenizer)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            checkpoints.check_resumable(checkpoint)
        if self.tokenizer is None:
            self.tokenizer = checkpoints.tokenizer_of(checkpoint)
        self._saved_data = checkpoint.get("datamodule_hyper_parameters")

    def data_options(self) -> Mapping[str, Any] | None:
        """Returns the options of the DataModule that the model was trained with, where known."""
        hparams = getattr(self._datamodule(), "hparams", None)
        return self._saved_data if hparams is None else dict(hparams)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | PathLike[str],
        *,
        map_location: torch.device | str = "cpu",
        hparams: Mapping[str, Any] | None = None,
    ) -> Self:
        """Restores the module that wrote the file: called on ``Seq2Seq``, of whatever subclass.

        Lightning's own method builds the class that it is called on, with whatever arguments it
        happens to share; here the file says which class it is, and only weights are read, never
        code.

        Args:
            checkpoint_path: A file on this machine, or a folder of ``save_pretrained``.
            map_location: Where the weights go.
            hparams: Constructor arguments that replace the saved ones, such as ``beam_size``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no litseq checkpoint, or one of another class.
        """
        checkpoint = checkpoints.read(checkpoint_path)
        module = checkpoints.find_class(checkpoint, cls)(
            **{**checkpoint["hyper_parameters"], **(hparams or {})}
        )
        checkpoints.check_sizes(checkpoint, module)
        module.configure_model()
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        module.to(map_location).eval()
        return module


def _is_filler(batch: Batch) -> bool:
    """Whether the loader gives this batch only because its rank has no other."""
    return "id" in batch and bool((batch["id"] < 0).all())


def _token_sums() -> MetricCollection:
    # "disable": to look for NaN would mean to wait for the device at every update
    return MetricCollection(
        {name: SumMetric(nan_strategy="disable") for name in TokenLoss._fields},
        compute_groups=False,
    )
