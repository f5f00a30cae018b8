"""A start for your own small images: PreResNet-20, flips and crops.

Not tuned for any data set: the proportions are the paper's (section 5), the epochs a quarter of its.
"""

from trainer.config import Config, CurveConfig, DataConfig, EndpointConfig, FgeConfig, ModelConfig, SgdConfig


def images(seed: int = 0) -> Config:
    return Config(
        name="images",
        seed=seed,
        data=DataConfig(source="torchvision:CIFAR10", train_rows=0, calibration_rows=5000, augment="flip-crop"),
        model=ModelConfig(factory="trainer.models.preresnet:preresnet", options={"depth": 20}),
        sgd=SgdConfig(batch_size=128, momentum=0.9, weight_decay=3e-4),
        endpoint=EndpointConfig(epochs=40, learning_rate=0.1),
        fge=FgeConfig(start_epochs=[30], epochs=10, cycle_epochs=4, alpha_1=5e-2, alpha_2=5e-4),
        curve=CurveConfig(kind="bezier", bends=1, epochs=50, learning_rate=0.03, members=16, grid=31),
    )
