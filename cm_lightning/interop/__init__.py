"""Weights in and out: OpenAI's and EDM's networks, diffusers, ONNX. Nothing from a file is executed."""
