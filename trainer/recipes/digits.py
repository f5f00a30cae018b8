"""The demo: scikit-learn's bundled handwritten digits (1,797 real 8×8 scans), about 20 seconds on two cores.

Labels are scarce on purpose: with 1,000 training images the task is saturated and no ensemble helps.
"""

from trainer.config import (
    Config,
    CurveConfig,
    DataConfig,
    EndpointConfig,
    ExportConfig,
    FgeConfig,
    ModelConfig,
    SgdConfig,
)


def digits(seed: int = 0) -> Config:
    return Config(
        name="digits",
        seed=seed,
        threads=1,  # the network is too small to share
        data=DataConfig(source="digits", train_rows=300, calibration_rows=300),
        model=ModelConfig(factory="trainer.models.small_conv:small_conv", options={"channels": [16, 32, 32]}),
        sgd=SgdConfig(batch_size=50, momentum=0.9, weight_decay=5e-4),
        endpoint=EndpointConfig(epochs=20, learning_rate=0.1),
        fge=FgeConfig(start_epochs=[15], epochs=38, cycle_epochs=4, alpha_1=0.5, alpha_2=0.01, trace_every=2),
        curve=CurveConfig(kind="bezier", bends=1, epochs=150, learning_rate=0.1, members=21),
        export=ExportConfig(cascade_loss=0.005),  # 300 calibration rows cannot promise less than one in 301
    )
