"""Export to other programs: diffusers, ONNX, a web page, safetensors, and the model card of the files."""
