"""Preactivation ResNet-164 on CIFAR-100: the paper's curves of section 4.

Epochs, rates and cycles are the paper's section 6 and appendix A.5. Where it is silent (weight decay, the curve's
epochs and rates, batch size, the last 5,000 training images held out), the authors' later code. For CIFAR-10:
--data torchvision:CIFAR10.
"""

from trainer.config import Config, CurveConfig, DataConfig, EndpointConfig, FgeConfig, ModelConfig, SgdConfig


def paper_preresnet164(seed: int = 0) -> Config:
    return Config(
        name="paper-preresnet164",
        seed=seed,
        data=DataConfig(source="torchvision:CIFAR100", train_rows=0, calibration_rows=5000, augment="flip-crop"),
        model=ModelConfig(factory="trainer.models.preresnet:preresnet", options={"depth": 164}),
        sgd=SgdConfig(batch_size=128, momentum=0.9, weight_decay=3e-4),
        endpoint=EndpointConfig(epochs=150, learning_rate=0.1),
        fge=FgeConfig(start_epochs=[125], epochs=22, cycle_epochs=4, alpha_1=5e-2, alpha_2=5e-4),
        curve=CurveConfig(kind="bezier", bends=1, epochs=200, learning_rate=0.03, members=50, grid=121),
    )
