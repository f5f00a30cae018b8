"""CIFAR-100 that withstands small changes of its pixels: recipe images, trained adversarially. Wants a GPU.

L∞ 8 of 255 levels, by PGD of seven steps of 2 (Madry et al. 2018). Every step costs eight plain ones. A third network
trained alone is what ensembles are compared with, and an outsider from whom attacks transfer. Not tuned for this.
"""

from trainer.config import (
    AdversaryConfig,
    Config,
    CurveConfig,
    DataConfig,
    EndpointConfig,
    FgeConfig,
    IndConfig,
    ModelConfig,
    SgdConfig,
)


def cifar100_robust(seed: int = 0) -> Config:
    return Config(
        name="cifar100-robust",
        seed=seed,
        methods=["ind", "fge", "curve"],
        data=DataConfig(source="torchvision:CIFAR100", train_rows=0, calibration_rows=5000, augment="flip-crop"),
        model=ModelConfig(factory="trainer.models.preresnet:preresnet", options={"depth": 20}),
        sgd=SgdConfig(batch_size=128, momentum=0.9, weight_decay=3e-4),
        adversary=AdversaryConfig(norm="linf", epsilon=8.0, steps=7, step_size=2.0),
        endpoint=EndpointConfig(epochs=40, learning_rate=0.1),
        ind=IndConfig(runs=3),
        fge=FgeConfig(start_epochs=[30], epochs=10, cycle_epochs=4, alpha_1=5e-2, alpha_2=5e-4),
        curve=CurveConfig(kind="bezier", bends=1, epochs=50, learning_rate=0.03, members=16, grid=31),
    )
