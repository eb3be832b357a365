"""Export to other programs: diffusers, ONNX, safetensors, and the model card of the files."""
