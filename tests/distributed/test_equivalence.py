"""Several ranks compute what one rank computes: with real processes, over gloo."""

import json

import pytest
import torch

from litseq.architectures import RnnAttentionSeq2Seq, RnnSeq2Seq, TransformerSeq2Seq
from litseq.callbacks import TranslationWriter
from litseq.data import TranslationDataModule
from rank_processes import run_ranks
from tiny_tasks import FAMILIES, tiny_trainer


@pytest.fixture(scope="module")
def prepared(data_options):
    """Data that are prepared already: ranks would wait for rank zero."""
    TranslationDataModule(**data_options).prepare_data()
    return data_options


def make(family, **options):
    torch.manual_seed(0)
    known = next(cls for cls in FAMILIES if issubclass(family, cls))
    sizes = {**FAMILIES[known], "dropout": 0.0, "warmup_steps": 4, "max_len_b": 5}
    return family(**{**sizes, **options})


def recording(family):
    """A subclass that keeps losses, token counts and the gradients of every optimizer step."""

    class Recording(family):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.micro.append((loss.item(), int((batch["labels"] != -100).sum())))
            return loss

        def on_before_optimizer_step(self, optimizer):
            super().on_before_optimizer_step(optimizer)
            grads = {name: p.grad.clone() for name, p in self.named_parameters()}
            self.steps.append((self.micro, grads))
            self.micro = []

    Recording.__qualname__, Recording.micro, Recording.steps = family.__qualname__, [], []
    return Recording


def train(rank, folder, options, family, world_size, parts):
    task = make(recording(family))
    trainer = tiny_trainer(
        folder,
        strategy="ddp" if world_size > 1 else "auto",
        devices=world_size,
        accumulate_grad_batches=parts,
        precision="64-true",
        max_epochs=2,
        limit_val_batches=0,
    )
    trainer.fit(task, TranslationDataModule(**options))
    return task.steps, task.state_dict()


def by_step(results):
    """For each optimizer step: sum of losses, tokens of each micro-batch, gradients by rank."""
    for ranks in zip(*(steps for steps, _ in results), strict=True):
        micro = [part for parts, _ in ranks for part in parts]
        yield sum(loss for loss, _ in micro), [n for _, n in micro], [grads for _, grads in ranks]


def compare(folder, options, family, one, several):
    """Both are (ranks, micro-batches of a step). In float64, so rounding is below 1e-10."""
    runs = [
        run_ranks(ranks, train, folder, options, family, ranks, parts)
        for ranks, parts in (one, several)
    ]
    steps = list(zip(by_step(runs[0]), by_step(runs[1]), strict=True))
    assert len(steps) > 4
    for (loss, tokens, [expected, *_]), (found_loss, found_tokens, found) in steps:
        assert sum(found_tokens) == sum(tokens)
        assert found_loss == pytest.approx(loss, rel=1e-10)
        for grads in found:
            torch.testing.assert_close(grads, expected, rtol=1e-8, atol=1e-10)
    assert any(len(set(tokens)) > 1 for _, (_, tokens, _) in steps)  # the hard case
    for _, weights in runs[1]:
        torch.testing.assert_close(dict(weights), dict(runs[0][0][1]), rtol=1e-8, atol=1e-9)


def test_two_ranks_train_as_one_does(prepared, tmp_path):
    compare(tmp_path, prepared, TransformerSeq2Seq, (1, 2), (2, 1))


@pytest.mark.slow
@pytest.mark.parametrize("family", [RnnSeq2Seq, RnnAttentionSeq2Seq, TransformerSeq2Seq])
@pytest.mark.parametrize(("one", "several"), [((1, 4), (2, 2)), ((2, 3), (3, 2)), ((1, 3), (3, 1))])
def test_global_batches_are_the_same(family, one, several, prepared, tmp_path):
    compare(tmp_path, prepared, family, one, several)


def evaluate(rank, folder, options, world_size, stages):
    task = make(TransformerSeq2Seq, val_beam_size=2)
    found = {}
    for stage in stages:
        trainer = tiny_trainer(
            folder,
            strategy="ddp" if world_size > 1 else "auto",
            devices=world_size,
            callbacks=[TranslationWriter(str(folder / f"{stage}-{world_size}"))],
        )
        run = getattr(trainer, stage)
        if stage == "predict":
            run(task, TranslationDataModule(**options), return_predictions=False)
        else:
            [found[stage]] = run(task, TranslationDataModule(**options), verbose=False)
    return found


def check_evaluation(folder, options, world_sizes, stages=("validate", "test", "predict")):
    TranslationDataModule(**options).prepare_data()
    [expected] = run_ranks(1, evaluate, folder, options, 1, stages)
    for world_size in world_sizes:
        for found in run_ranks(world_size, evaluate, folder, options, world_size, stages):
            assert found.keys() == expected.keys()
            for stage, scores in expected.items():
                assert found[stage].keys() == scores.keys()
                for name, value in scores.items():
                    # only the sums of the losses may be added in another order
                    tolerance = 1e-6 if name.split("/")[1] in ("loss", "nll", "ppl") else 0
                    assert found[stage][name] == pytest.approx(value, rel=tolerance), name
        for stage in stages:
            one, several = folder / f"{stage}-1", folder / f"{stage}-{world_size}"
            files = [path.relative_to(one) for path in one.rglob("*.*") if path.is_file()]
            assert files
            for path in files:
                if path.name != "scores.json":
                    assert (several / path).read_bytes() == (one / path).read_bytes(), path
    return folder


def test_three_ranks_score_and_write_what_one_does(prepared, tmp_path):
    # 1 example: two of three ranks have no batch at all
    (tmp_path / "one.en").write_text("one red dog\n")
    (tmp_path / "one.de").write_text("hund rot eins\n")
    one = {**prepared, "test": str(tmp_path / "one"), "predict": str(tmp_path / "one")}
    check_evaluation(tmp_path, one, [3])
    scores = json.loads((tmp_path / "test-3" / "test" / "scores.json").read_text())
    assert scores["num_sentences"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_any_size_scores_the_same(size, num_workers, prepared, corpus, tmp_path):
    for lang in ("en", "de"):
        lines = (corpus / f"test.{lang}").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"part.{lang}").write_text("".join(lines[:size]), encoding="utf-8")
    files = dict.fromkeys(("val", "test", "predict"), str(tmp_path / "part"))
    options = {**prepared, **files, "num_workers": num_workers, "max_tokens": 40}
    check_evaluation(tmp_path, options, [2, 3])
