"""Writing for other programs: diffusers, ONNX, safetensors, and the card that goes with the files."""
