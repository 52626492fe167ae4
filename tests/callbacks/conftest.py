from wandb_reader import offline_wandb

__all__ = ["offline_wandb"]
