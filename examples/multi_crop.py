"""A model with custom preprocessing: the mean of the vectors of three crops or, with `each_crop: true`, all three.

embedder:
  class: "examples/multi_crop.py:MultiCropEmbedder"
  args: {weights_path: resnet18.pth, batch_size: 32}
"""

import torch
from PIL import Image, ImageOps
from torch.nn.functional import normalize
from torchvision.models import resnet18
from torchvision.transforms import functional

from embedders import ImageEmbedder

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class MultiCropEmbedder(ImageEmbedder):
    """Embeds with 512 dimensions and norm 1; the crops are squares at both ends and in the middle."""

    def __init__(self, weights_path, batch_size=32, each_crop=False):
        super().__init__("resnet18, three crops")
        self.weights_path, self.batch_size, self.each_crop = weights_path, batch_size, each_crop

    def preprocess(self, image):
        crops = [ImageOps.fit(image, (224, 224), Image.BICUBIC, centering=(at, at)) for at in (0, 0.5, 1)]
        return functional.normalize(torch.stack([functional.to_tensor(crop) for crop in crops]), MEAN, STD)

    def load_embedding_model(self, device):
        model = resnet18()
        model.load_state_dict(torch.load(self.weights_path, weights_only=True))
        model.fc = torch.nn.Identity()  # 512 features instead of 1000 class scores
        model.eval().to(device)

        def embed(batch):  # of shape (images, 3 crops, 3, 224, 224)
            vectors = normalize(model(batch.to(device).flatten(0, 1)), dim=-1).unflatten(0, batch.shape[:2])
            return vectors if self.each_crop else normalize(vectors.mean(dim=1), dim=-1)

        return embed
