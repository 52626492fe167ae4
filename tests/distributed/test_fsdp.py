"""Parameters divided among ranks (FSDP2, on CPU): the same training, checkpoints, translations."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor

from litseq import checkpoints
from litseq.architectures import RnnAttentionSeq2Seq, TransformerSeq2Seq
from litseq.average import main
from litseq.callbacks import RunCheckpoint
from litseq.data import TranslationDataModule
from litseq.task import Seq2Seq
from rank_processes import run_ranks
from tiny_tasks import (
    TINY_RNN,
    TINY_TRANSFORMER,
    loader,
    tiny_batches,
    tiny_task,
    tiny_trainer,
)

FAMILIES = {TransformerSeq2Seq: TINY_TRANSFORMER, RnnAttentionSeq2Seq: TINY_RNN}


def full(state):
    return {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}


def fit(rank, folder, options, family, world_size, more):
    resume = more.pop("resume", None)
    # the strategy refuses precision="64-true"; in 32 bits Adam turns rounding into steps
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    task = family(**FAMILIES[family], dropout=0.0, warmup_steps=4, max_len_b=5)
    strategy = "auto"
    if world_size > 1:
        strategy = ModelParallelStrategy(data_parallel_size=world_size, tensor_parallel_size=1)
    trainer = tiny_trainer(
        folder,
        strategy=strategy,
        devices=world_size,
        accumulate_grad_batches=2 // world_size,
        callbacks=[
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1),
            RunCheckpoint(str(folder)),
        ],
        enable_checkpointing=True,
        gradient_clip_val=0.5,
        **{"max_epochs": 1, **more},
    )
    datamodule = TranslationDataModule(**options)
    trainer.fit(task, datamodule, ckpt_path=resume)
    embedding = task.network.tgt_embedding.weight
    found = {
        "sharded": isinstance(embedding, DTensor),
        "tied": task.network.output.weight is embedding,
        "weights": full(task.state_dict()),
        "scores": {k: v.item() for k, v in trainer.callback_metrics.items() if "val/" in k},
    }
    [found["test"]] = trainer.test(task, datamodule, verbose=False)
    found["texts"] = [t.text for t in task.evaluation.translations]
    return found


@pytest.fixture(scope="module")
def options(data_options):
    # few and small batches in evaluation, so that ranks differ in their number
    options = {**data_options, "max_tokens": 96, "eval_max_tokens": 64}
    TranslationDataModule(**options).prepare_data()
    return options


def check(options, tmp_path, family):
    [one] = run_ranks(1, fit, tmp_path / "one", options, family, 1, {})
    two = run_ranks(2, fit, tmp_path / "two", options, family, 2, {})
    for found in two:
        assert found["sharded"]
        assert found["tied"] == one["tied"]
        torch.testing.assert_close(found["weights"], one["weights"], rtol=1e-8, atol=1e-9)
        for name in ("scores", "test"):
            assert found[name] == pytest.approx(one[name], rel=1e-6)
        assert found["texts"] == one["texts"]
    return two[0]["weights"]


@pytest.mark.slow
def test_sharded_ranks_train_score_and_resume_as_one_does(options, tmp_path):
    weights = check(options, tmp_path, TransformerSeq2Seq)
    saved = tmp_path / "two" / "step=4.ckpt"
    assert (saved / "meta.pt").is_file()
    assert len(list(saved.glob("*.distcp"))) == 2
    more = {"resume": str(saved)}
    resumed = run_ranks(2, fit, tmp_path / "rest", options, TransformerSeq2Seq, 2, more)
    torch.testing.assert_close(resumed[0]["weights"], weights, rtol=0, atol=0)


def test_a_sharded_checkpoint_becomes_a_plain_one(options, tmp_path):
    more = {"max_steps": 4}
    [found, _] = run_ranks(2, fit, tmp_path, options, TransformerSeq2Seq, 2, more)
    assert (tmp_path / "last.ckpt" / ".metadata.sha256").is_file()
    assert checkpoints.newest(tmp_path) == tmp_path / "last.ckpt"
    main([str(tmp_path / "last.ckpt")], output=str(tmp_path / "plain.ckpt"))
    module = Seq2Seq.load_from_checkpoint(tmp_path / "plain.ckpt")
    torch.testing.assert_close(dict(module.state_dict()), found["weights"], check_dtype=False)
    assert module.network.output.weight is module.network.tgt_embedding.weight
    sources = (Path(options["test"] + ".en")).read_text(encoding="utf-8").splitlines()
    assert module.double().translate(sources) == found["texts"]


def split_layers(rank, folder):
    task = tiny_task()
    task.network = None  # to be built again, on the mesh
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
    trainer = tiny_trainer(folder, strategy=strategy, devices=2)
    with pytest.raises(ValueError, match="tensor_parallel_size is 2; set it to 1 and data_par"):
        trainer.fit(task, loader(tiny_batches(2)))


def test_layers_are_not_split(tmp_path):
    run_ranks(2, split_layers, tmp_path)


@pytest.mark.slow
def test_a_network_without_layers_is_one_unit(options, tmp_path):
    check(options, tmp_path, RnnAttentionSeq2Seq)
