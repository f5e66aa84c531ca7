"""A model in an .onnx file, run by ONNX Runtime on the GPU that the job has leased, or on the CPU.

    embedder:
      class: "examples/onnx_model.py:OnnxEmbedder"
      args: {model_path: model.onnx, batch_size: 64}

pip install onnxruntime    # onnxruntime-gpu for GPUs
"""

import onnxruntime
import torch

from embedders import ImageEmbedder

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
MEAN, STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)


class OnnxEmbedder(ImageEmbedder):
    """Embeds by the first output of the model, whose first input is float32 of shape (images, 3, 224, 224)."""

    def __init__(self, model_path, batch_size=64):
        super().__init__(model_path)
        self.batch_size = batch_size

    def preprocess(self, image):
        return (super().preprocess(image) - MEAN) / STD

    def load_embedding_model(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # the job's share of the machine
        session = onnxruntime.InferenceSession(self.model_name, options, providers=[PROVIDERS[device]])
        if PROVIDERS[device] not in session.get_providers():  # it falls back to the CPU by itself
            raise RuntimeError(f"onnxruntime has no {PROVIDERS[device]}; install onnxruntime-gpu")
        name = session.get_inputs()[0].name
        return lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0])
