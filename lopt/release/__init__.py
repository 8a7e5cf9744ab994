"""The released format: an optimizer with its θ as a folder of JSON and safetensors."""
