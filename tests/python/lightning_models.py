"""A small model and its Trainer, of either of Lightning's packages."""

from __future__ import annotations

import torch

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]


def make_model(pl):
    """A model with an Adam and a schedule, small and deterministic."""

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"width": 16})
            torch.manual_seed(1)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)
            )
            self.fail_at = None

        def training_step(self, batch, batch_idx):
            if self.global_step == self.fail_at:
                raise ValueError("train boom")
            loss = self.net(batch[0]).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]

        def train_dataloader(self):
            data = torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
            return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=8)

    return Model()


def make_trainer(pl, folder, plugin, max_epochs=2, callbacks=(), options=(), **checkpointing):
    """A quiet Trainer on the CPU with a ModelCheckpoint, other callbacks and other options."""
    callback = pl.callbacks.ModelCheckpoint(dirpath=folder, **checkpointing)
    return quiet_trainer(
        pl,
        max_epochs=max_epochs,
        plugins=[plugin] if plugin else None,
        callbacks=[callback, *callbacks],
        **dict(options),
    )


def quiet_trainer(pl, **options):
    """A Trainer on the CPU that shows and logs nothing unless told to."""
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )
