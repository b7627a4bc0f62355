"""A Hugging Face checkpoint: where it is, its files, and its tensors one at a time.

``find`` and ``hub`` locate it, ``directory`` and ``tensor_files`` read it, ``files`` lists what is read. The others are weights of
another kind: quantized ones, random ones, CLIP's, and those of a trained pruner.
"""
