"""What a run of the command line leaves about itself, on disk and in its loggers."""

from __future__ import annotations

import logging
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from litseq.callbacks import run_folder
from litseq.cli_imports import import_flags
from litseq.evaluation import Evaluation
from litseq.textfiles import whole_file

__all__ = ["SaveRunConfig", "prepare_wandb"]

_log = logging.getLogger("litseq")

_PACKAGES = ("litseq", "lightning", "torch", "sentencepiece", "sacrebleu")
_SECRET = re.compile(r"(^|[_-])(api_?key|key|token|secret|password|passwd|credentials?)$", re.I)


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration of ``fit`` in the run's folder, and never over that of another run.

    Lightning's own saves for every command, into a folder that W&B runs share, and gives up when a
    file is there already.

    Beside it ``provenance.yaml`` says what the run began with: versions, the commit of the folder
    that it runs in, hashes of data and tokenizer. TensorBoard gets both as texts.

    A W&B run gets the configuration as its config, to filter and group by, with the vocabulary's
    sizes and ``provenance``; as the file ``litseq.yaml``, to train with again (``config.yaml`` is
    W&B's own); and, at the end, the best score and sacreBLEU's signatures in its summary. Whatever
    is named like a password stays out of all.
    """

    _folder: Path | None = None  # known when training is about to begin

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes nothing: data, model or checkpoint may still turn out to be faulty."""

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Removes the folder of a run that could not begin; says how to go on with one that did."""
        if self._folder is not None:
            if trainer.is_global_zero and any((self._folder / "checkpoints").glob("*.ckpt")):
                config = quote(str(self._folder / self.config_filename))
                words = ["-c", config, "--ckpt_path", "last", *import_flags()]
                _log.info("to go on: litseq fit %s", " ".join(words))
        elif trainer.loggers and trainer.world_size == 1:  # several ranks would have to agree first
            folder = run_folder(trainer)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes ``config.yaml`` once, on rank zero."""
        if self.already_saved:
            return
        self.already_saved = True
        self._folder = folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        if config.ckpt_path and Path(config.ckpt_path).parent.parent.resolve() == folder.resolve():
            config.ckpt_path = None  # a run that goes on: its configuration is how it began
        # what is named like a password stays out of every file of the run
        content = without_secrets(yaml.safe_load(self.parser.dump(config, skip_none=False)))
        with whole_file(folder / self.config_filename) as file:
            yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True)

    # Not on_fit_start: after it Lightning logs the hyperparameters without the vocabulary.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says with what it trains: in the run's folder, to TensorBoard and to W&B."""
        if self._folder is None or not trainer.is_global_zero:
            return
        origin = provenance(trainer)
        path = self._folder / "provenance.yaml"
        if not path.exists():  # a run that goes on
            with whole_file(path) as file:
                yaml.safe_dump(origin, file, sort_keys=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                texts = {"config": self._shown_config(), "provenance": origin}
                for name, content in texts.items():
                    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
                    logger.experiment.add_text(name, f"```yaml\n{text}```", trainer.global_step)
        for logger in _wandb_loggers(trainer):
            run, config = logger.experiment, self._shown_config()
            run.config.update(config, allow_val_change=True)
            logger.log_hyperparams({**pl_module.hparams, "provenance": origin})
            path = Path(run.dir) / "litseq.yaml"
            if path.parent.is_dir():  # a disabled run has none
                text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
                path.write_text(text, encoding="utf-8")
                run.save(str(path), base_path=str(path.parent), policy="now")

    def _shown_config(self) -> Any:  # noqa: ANN401 - a nested dict
        return _at_home(without_secrets(yaml.safe_load(self.parser.dump(self.config))))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells W&B the best score and how scores were computed; it keeps the last by itself."""
        self._sign(trainer, pl_module)
        checkpoints = trainer.checkpoint_callback
        if isinstance(checkpoints, ModelCheckpoint) and checkpoints.best_model_score is not None:
            for logger in _wandb_loggers(trainer):
                best = float(checkpoints.best_model_score)
                logger.experiment.summary[f"best/{checkpoints.monitor}"] = best

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells W&B how scores of ``validate`` were computed."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._sign(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells W&B how scores of ``test`` were computed."""
        self._sign(trainer, pl_module)

    def _sign(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluation = getattr(pl_module, "evaluation", None)
        if isinstance(evaluation, Evaluation):
            for logger in _wandb_loggers(trainer):
                for name, signature in evaluation.scores.signatures.items():
                    logger.experiment.summary[f"{evaluation.split}/signature/{name}"] = signature


def provenance(trainer: Trainer) -> dict[str, Any]:
    """Says with what a run trains: versions, the commit of its folder, hashes of its data."""
    data = getattr(trainer, "datamodule", None)
    tokenizer = getattr(data, "tokenizer", None)
    return {
        "versions": {name: version(name) for name in _PACKAGES},
        "commit": _commit(),
        "data": getattr(data, "fingerprints", None),
        "tokenizer": getattr(tokenizer, "fingerprint", None),
    }


def _commit() -> str | None:
    """The commit of the folder that the command runs in, marked where files are other."""
    words = ["git", "describe", "--always", "--dirty=, changed", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None
    return found.stdout.strip()


def without_secrets(config: Any) -> Any:  # noqa: ANN401 - any part of a configuration
    """Hides the values of keys that are named like secrets, at any depth."""
    if isinstance(config, list):
        return [without_secrets(item) for item in config]
    if not isinstance(config, dict):
        return config
    return {
        key: "hidden" if _SECRET.search(str(key)) and value else without_secrets(value)
        for key, value in config.items()
    }


def _at_home(config: Any) -> Any:  # noqa: ANN401
    """Writes the user's home folder as ``~`` in every path of a configuration."""
    if isinstance(config, list):
        return [_at_home(item) for item in config]
    if isinstance(config, dict):
        return {key: _at_home(value) for key, value in config.items()}
    home = f"{Path.home()}/"
    return f"~/{config[len(home) :]}" if str(config).startswith(home) else config


def _wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in loggers if isinstance(logger, WandbLogger)]


@rank_zero_only
def prepare_wandb(trainer: Trainer) -> None:
    """Starts a W&B session if there is a logger for it: offline unless its server lets us in.

    So a run neither asks for a key nor waits for a network that is not there. Code, git's remote
    and differences, and the command line are not recorded: any of them may hold what nobody meant
    to publish.

    Args:
        trainer: The trainer; its loggers have not logged yet.
    """
    if not _wandb_loggers(trainer):
        return
    import wandb

    if wandb.run is not None:  # somebody's own, which the logger will use
        return
    settings = wandb.Settings(save_code=False, disable_git=True, x_disable_meta=True)
    if wandb.setup(settings).settings.mode != "online":
        return
    problem = "not logged in to W&B"
    try:
        if wandb.login(prompt=False):
            return
    except wandb.Error as error:
        problem = " ".join(str(error).split())
    wandb.setup(wandb.Settings(mode="offline"))
    _log.warning(
        "%s: the run is kept offline; once logged in ('wandb login'), the command that W&B shows "
        "at the end sends it.",
        problem.rstrip("."),
    )
