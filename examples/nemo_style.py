"""An embedder as it was written for NeMo Curator 0.x, with both methods; its shards are read by `TarSamples`.

embedder:
  class: "examples/nemo_style.py:ResNetEmbedder"
  args: {weights_path: resnet18.pth, batch_size: 32}
id_col: id
"""

import io
import json

import torch
import webdataset as wds
from PIL import Image
from torchvision.models import ResNet18_Weights, resnet18

from embedders import ImageEmbedder, TarSamples  # was: from nemo_curator.image.embedders import ImageEmbedder


class ResNetEmbedder(ImageEmbedder):
    """Embeds with 512 dimensions."""

    def __init__(self, weights_path, batch_size=32, image_embedding_column="image_embedding", classifiers=()):
        super().__init__("resnet18", image_embedding_column=image_embedding_column, classifiers=classifiers)
        self.weights_path = weights_path
        self.batch_size = batch_size

    def load_dataset_shard(self, tar_path):
        transform = ResNet18_Weights.DEFAULT.transforms()
        # TarSamples: webdataset's reader takes damage for the end of the tar. The handler leaves out a bad image.
        decode = (lambda jpg: transform(Image.open(io.BytesIO(jpg)).convert("RGB")), json.loads)
        stages = (wds.to_tuple("jpg", "json"), wds.map_tuple(*decode, handler=wds.warn_and_continue))
        return wds.DataPipeline(TarSamples(tar_path), *stages, wds.batched(self.batch_size))

    def load_embedding_model(self, device):
        model = resnet18()
        model.load_state_dict(torch.load(self.weights_path, weights_only=True))
        model.fc = torch.nn.Identity()
        model.eval().to(device)
        return lambda batch: model(batch.to(device))
