import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from litseq.callbacks import RunCheckpoint
from litseq.callbacks.idle import RefuseIdleRun


def trainer(folder, **limits):
    options = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RefuseIdleRun()],
        **{**options, **limits},
    )


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_a_run_that_does_something(verb, tmp_path):
    limits = {f"limit_{name}_batches": 1 for name in ("test", "predict")}
    getattr(trainer(tmp_path, **limits), verb)(BoringModel())


@pytest.mark.parametrize(
    ("verb", "limits", "message"),
    [
        ("fit", {"max_epochs": 0}, "nothing was trained: the run is at epoch 0 .*max_epochs=0"),
        ("fit", {"max_steps": 0}, "nothing was trained: .*max_steps=0"),
        ("fit", {"limit_train_batches": 0}, "limit_train_batches=0; raise the limit that is reac"),
        ("validate", {"limit_val_batches": 0}, "nothing was validated: limit_val_batches=0 leaves"),
        ("test", {"limit_test_batches": 0}, "nothing was tested: limit_test_batches=0 leaves no"),
        ("predict", {"limit_predict_batches": 0}, "nothing was predicted: limit_predict_batches=0"),
    ],
)
def test_a_run_that_does_nothing(verb, limits, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        getattr(trainer(tmp_path, **limits), verb)(BoringModel())


def test_a_run_that_has_come_to_its_end(tmp_path):
    first = trainer(tmp_path)
    first.fit(BoringModel())
    first.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="the run is at epoch 1 and step 2, with max_epochs=1"):
        trainer(tmp_path).fit(BoringModel(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)


def test_an_error_stays_what_it_is(tmp_path):
    class Broken(BoringModel):
        def training_step(self, batch, batch_idx):
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        trainer(tmp_path).fit(Broken())
    assert torch.is_grad_enabled()


def test_a_last_validation_that_was_still_to_come(tmp_path):
    folder = tmp_path / "checkpoints"

    def run(ckpt_path=None):
        made = trainer(tmp_path)
        made.callbacks.append(RunCheckpoint(str(folder)))
        made.fit(BoringModel(), ckpt_path=ckpt_path, weights_only=True)

    run()
    run(folder / "previous.ckpt")  # of before that validation; no error, for it was done
    with pytest.raises(ValueError, match="nothing was trained"):
        run(folder / "last.ckpt")
