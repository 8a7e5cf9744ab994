"""The released format: a folder of JSON and safetensors."""
