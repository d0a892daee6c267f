"""Makes the variants of a model: the weights that the gateway's engines serve.

`export` unpacks the embedded full-precision model, `int8` quantises a model to eight bits. Both run in the
compression environment, because llmcompressor and vLLM pin different releases of compressed-tensors.
"""
